"""Files of ONNX and TensorFlow that are damaged in many ways, in processes of their
own: PYASYNCML_RUNS=300 loads 300 of each kind of damage."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import runs

SCRIPT = Path(__file__).parent / "isolated" / "corrupt.py"


def endings(source, backend):
    """How the truncations and the flips of the model's files ended, and the whole."""
    count = runs(40)
    done = subprocess.run(
        [sys.executable, SCRIPT, source, backend, str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100 + count,
        env={k: v for k, v in os.environ.items() if not k.startswith("TF_")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    print(done.stdout)
    found = json.loads(done.stdout)
    assert found["whole"] == {"loads": 1}
    for damage in ("cut_off", "flipped"):
        assert sum(found[damage].values()) == count
        assert found[damage].keys() <= {"loads", "fails", "refused"}
    return found


def test_a_damaged_onnx_file_loads_or_is_refused_by_its_path(tmp_path):
    pytest.importorskip("onnx")
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    import onnx_models

    found = endings(onnx_models.digits_like(tmp_path / "m.onnx"), "onnx")
    assert found["cut_off"].keys() == {"refused"}
    assert found["flipped"].get("refused", 0) > 0


def test_a_damaged_savedmodel_loads_or_is_refused_by_its_path(request):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    models = request.getfixturevalue("saved_model_folder")
    found = endings(models / "keras", "tensorflow")
    # A fingerprint harms nothing.
    assert found["cut_off"].get("refused", 0) > found["cut_off"].get("loads", 0)
    assert found["flipped"].get("refused", 0) > 0
