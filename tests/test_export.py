"""Programs in files: `export.torch`, `.pt2`, compiled packages."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import pyasyncml as ml
from pyasyncml import export

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Any, scale: Any, k: int = 3) -> Any:
        hidden = torch.relu(self.body(x)) * k
        return {"logits": self.head(hidden) * scale["by"], "hidden": hidden}


INPUTS = (torch.randn(1, 8), {"by": torch.ones(1, 4)}, 3)


def infer(path: Any, *requests: tuple[Any, ...], **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with ml.load(path, **options) as model:
            return [await model.infer(*request) for request in requests]

    return asyncio.run(main())


def requests(*batches: int) -> list[tuple[Any, ...]]:
    return [(torch.randn(n, 8), {"by": torch.randn(n, 4)}) for n in batches]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A file that `export.torch` wrote, and its module."""
    module = Heads().eval()
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export.torch(module, INPUTS, path)
    return path, module


def test_exported_program_serves_what_the_module_gives(program):
    path, module = program
    asked = requests(1, 2, 9)
    for got, request in zip(infer(path, *asked, instances=2), asked, strict=True):
        with torch.inference_mode():
            expected = module(*request)
        assert list(got) == ["logits", "hidden"]
        assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_file_knows_names_and_shapes_of_inputs_and_outputs(program):
    async def main():
        async with ml.load(program[0]) as model:
            signature = model.signature
            assert [spec.name for spec in signature.inputs] == ["x", "scale", "k"]
            assert signature.inputs[0].shape == (None, 8)
            assert signature.inputs[0].dtype == "float32"
            assert signature.inputs[2].optional
            outputs = {spec.name: spec.shape for spec in signature.outputs}
            assert outputs == {"logits": (None, 4), "hidden": (None, 16)}
            with pytest.raises(ml.InputError, match=r"'scale\[\"by\"\]' \('batch'\)"):
                await model.infer(torch.ones(2, 8), {"by": torch.ones(3, 4)})

    asyncio.run(main())


def test_checksum_is_written_and_verified(program, tmp_path):
    content = program[0].read_bytes()
    written = Path(f"{program[0]}.sha256").read_text()
    assert written == f"{hashlib.sha256(content).hexdigest()}  model.pt2\n"
    path = tmp_path / "model.pt2"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    Path(f"{path}.sha256").write_text(written)
    with pytest.raises(ml.LoadError, match="the checksum doesn't match"):
        infer(path)


def test_export_that_fails_leaves_the_old_file(program, tmp_path):
    path = tmp_path / "model.pt2"

    class DataDependent(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    path.write_bytes(b"old")
    with pytest.raises(ml.LoadError, match="if x.sum"):
        export.torch(DataDependent(), torch.ones(2, 3), path)
    assert path.read_bytes() == b"old"
    export.torch(nn.Linear(3, 2), torch.ones(1, 3), path)
    assert sorted(os.listdir(tmp_path)) == ["model.pt2", "model.pt2.sha256"]
    assert infer(path, (torch.ones(5, 3),))[0].shape == (5, 2)
    with pytest.raises(FileNotFoundError):
        export.torch(nn.Linear(3, 2), torch.ones(1, 3), tmp_path / "no" / "model.pt2")


def test_what_torch_export_save_wrote_is_served(tmp_path):
    module = Heads().eval()
    n = torch.export.Dim("n", min=2, max=16)
    shapes = ({0: n}, {"by": {0: n}}, None)
    inputs = (torch.randn(2, 8), {"by": torch.ones(2, 4)}, 3)
    path = tmp_path / "theirs.pt2"
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), path)
    asked = requests(1, 16)
    for got, request in zip(infer(path, *asked), asked, strict=True):
        with torch.inference_mode():
            assert torch.equal(got["logits"], module(*request)["logits"])
    with pytest.raises(ml.InputError, match="expected 1 to 16, got 17"):
        infer(path, *requests(17))


def test_file_is_read_by_torch_too(program):
    path, module = program
    loaded = torch.export.load(path).module()
    x, scale = requests(3)[0]
    assert torch.equal(loaded(x, scale, 3)["logits"], module(x, scale)["logits"])


def test_batches_of_a_file_share_runs(program):
    async def main():
        batching = ml.Batching(max_rows=8)
        async with ml.load(program[0], batching=batching) as model:
            asked = requests(*[1] * 32)
            await asyncio.gather(*(model.infer(*request) for request in asked))
            assert model.stats().runs < 20

    asyncio.run(main())


def test_entry_of_a_file_that_has_one_is_refused(program):
    with pytest.raises(ml.LoadError, match="has one entry; it has no 'other'"):
        infer(program[0], entry="other")


MUTANTS = """
import asyncio, random, sys, torch
import pyasyncml as ml

content = open(sys.argv[1], "rb").read()
path = sys.argv[2]
chance = random.Random(0)

async def attempt(made):
    with open(path, "wb") as file:
        file.write(made)
    try:
        async with ml.load(path) as model:
            inputs = torch.ones(2, 8), {"by": torch.ones(2, 4)}
            await asyncio.wait_for(model.infer(*inputs), 10)
        return "served"
    except ml.Error as error:
        return type(error).__name__

async def main():
    ends = {}
    for n in range(40):
        made = bytearray(content)
        if n % 4 == 0:
            made = made[: chance.randrange(len(made))]
        else:
            for _ in range(1 + n // 4):
                made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
        end = await attempt(bytes(made))
        ends[end] = ends.get(end, 0) + 1
    print(ends)

asyncio.run(main())
"""


def test_damaged_files_are_load_errors_or_serve_but_never_crash(program, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MUTANTS, program[0], tmp_path / "mutant.pt2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    ends = eval(done.stdout.splitlines()[-1])
    assert set(ends) <= {"served", "LoadError", "InputError", "BackendError"}
    assert ends["LoadError"] >= 10


# --- compiled ---


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    module = Heads().eval()
    path = tmp_path_factory.mktemp("compiled") / "model.pt2"
    export.torch(module, INPUTS, path, compile=True)
    return path, module


def test_compiled_program_serves_what_the_module_gives(compiled):
    path, module = compiled
    asked = requests(1, 2, 64)
    for got, request in zip(infer(path, *asked), asked, strict=True):
        with torch.inference_mode():
            expected = module(*request)
        for key in expected:
            torch.testing.assert_close(got[key], expected[key])


def test_inputs_of_compiled_code_are_checked_although_it_does_not(compiled):
    async def main():
        async with ml.load(compiled[0], instances=2) as model:
            assert model.signature.inputs[0].shape == (None, 8)
            x, scale = requests(4)[0]
            with pytest.raises(ml.InputError, match="'x': expected dtype float32"):
                await model.infer(x.double(), scale)
            with pytest.raises(ml.InputError, match=r"'x': expected shape \[\?, 8\]"):
                await model.infer(x[:, :4], scale)
            with pytest.raises(ml.InputError, match="expected 4, as axis 0 of input"):
                await model.infer(x, {"by": torch.ones(3, 4)})
            with pytest.raises(ml.InputError, match="exported for 3 alone"):
                await model.infer(x, scale, 4)
            # Any strides: the code was made for rows one after the other.
            turned = x.t().contiguous().t()
            for given in (x, turned):
                y = await model.infer(given, scale)
                torch.testing.assert_close(
                    y["logits"], compiled[1](x, scale)["logits"].detach()
                )

    asyncio.run(main())


def test_many_compiled_models_are_loaded_and_run_at_once(compiled):
    async def main():
        x, scale = requests(2)[0]
        loads = [ml.load(compiled[0], instances=2) for _ in range(4)]
        models = await asyncio.gather(*loads)
        for model in models:
            await asyncio.gather(*(model.infer(x, scale) for _ in range(20)))
            await model.close()

    asyncio.run(main())


def test_program_that_compiled_code_cannot_be_is_refused(tmp_path):
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Any) -> Any:
            self.seen += 1
            return x + self.seen

    class Overwrites(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.add_(1)

    class GivesText(nn.Module):
        def forward(self, x: Any) -> Any:
            return x, "text"

    path = tmp_path / "model.pt2"
    with pytest.raises(ml.LoadError, match=r"writes to its state \(seen\)"):
        export.torch(Counter(), torch.ones(2), path, compile=True)
    with pytest.raises(
        ml.LoadError, match=r"to its state \(running_mean\), in the mode"
    ):
        export.torch(nn.BatchNorm1d(2), torch.ones(3, 2), path, compile=True)
    with pytest.raises(ml.LoadError, match=r"writes to its input \(x\)"):
        export.torch(Overwrites(), torch.ones(2), path, compile=True)
    with pytest.raises(ml.LoadError, match="every output must be a tensor"):
        export.torch(GivesText(), torch.ones(2), path, compile=True)
    assert os.listdir(tmp_path) == []


def test_compiled_package_that_does_not_say_what_it_takes_is_refused(
    compiled, tmp_path
):
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(compiled[0]) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member.endswith("_metadata.json"):
                content = b'{"AOTI_DEVICE_KEY": "cpu"}'
            new.writestr(member, content)
    with pytest.raises(ml.LoadError, match="doesn't say what it takes"):
        infer(path)
