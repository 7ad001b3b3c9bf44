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


@pytest.fixture(scope="module")
def expected():
    """{file: label}, from the library itself, one by one."""
    files = filetypes.files()
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, *map(str, files)],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return dict(zip(files, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(
    ("batching", "count"),
    [(None, 300), (ml.Batching(max_rows=16), 60)],
    ids=["alone", "batched"],
)
def test_real_files_get_the_labels_that_the_library_gives_one_by_one(
    expected, batching, count
):
    labels = filetypes.labels()
    files = [*expected][:: len(expected) // count]
    assert len(files) == count
    inputs = [filetypes.features(path) for path in files]

    async def main():
        async with ml.load(filetypes.model(), batching=batching, instances=2) as model:
            return await asyncio.gather(*map(model.infer, inputs))

    ours = [labels[scores.argmax()] for scores in asyncio.run(main())]
    assert ours == [expected[path] for path in files]
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
