"""A real ONNX model on real files: the same labels as from the library itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pyasyncml as ml

pytest.importorskip("numpy")  # here: its threads stay
filetypes = pytest.importorskip("benchmarks.filetypes")
if missing := filetypes.missing():
    pytest.skip(f"{', '.join(missing)} is not installed", allow_module_level=True)


@pytest.mark.parametrize(
    "batching", [None, ml.Batching(max_rows=16)], ids=["alone", "batched"]
)
def test_real_files_get_the_labels_that_the_library_gives_one_by_one(batching):
    labels = filetypes.labels()
    files = filetypes.files(60)
    inputs = [filetypes.features(path) for path in files]

    async def main():
        async with ml.load(filetypes.model(), batching=batching, instances=2) as model:
            return await asyncio.gather(*map(model.infer, inputs))

    ours = [labels[scores.argmax()] for scores in asyncio.run(main())]
    theirs = json.loads(
        subprocess.run(
            [sys.executable, "-c", ONE_BY_ONE, *map(str, files)],
            capture_output=True,
            check=True,
            cwd=Path(__file__).parents[1],
        ).stdout
    )
    assert ours == theirs
    assert len(set(ours)) > 10


#: In a process of its own: importing onnxruntime here would leave more behind.
ONE_BY_ONE = """
import json, pathlib, sys
from benchmarks import filetypes

session, labels = filetypes.session(filetypes.model()), filetypes.labels()
found = []
for path in sys.argv[1:]:
    x = filetypes.features(pathlib.Path(path))
    found.append(labels[session.run(None, {"bytes": x})[0].argmax()])
print(json.dumps(found))
"""
