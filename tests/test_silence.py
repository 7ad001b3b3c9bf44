"""What the libraries say of runs that fail: to the caller, and to nobody else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "isolated" / "failing_runs.py"


@pytest.mark.parametrize(
    ("kind", "said", "first"),
    [
        ("onnx", "the_reshape", []),
        ("savedmodel", "Incompatible shapes", []),
        ("savedmodel", "Incompatible shapes", ["xla"]),
    ],
)
def test_a_run_that_fails_is_on_stderr_only_where_the_log_is_asked_for(
    request, tmp_path, kind, said, first
):
    if kind == "onnx":
        pytest.importorskip("onnx")
        if importlib.util.find_spec("onnxruntime") is None:
            pytest.skip("onnxruntime is not installed")
        import onnx_models

        path = onnx_models.reshaped(tmp_path / "m.onnx")
    else:
        if importlib.util.find_spec("tensorflow") is None:
            pytest.skip("tensorflow is not installed")
        path = request.getfixturevalue("saved_model_folder") / "several"
    if first and importlib.util.find_spec("lammps_jax_pjrt_cpu") is None:
        pytest.skip("there is no XLA plugin")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "PYASYNC"))}
    for log in ({}, {"PYASYNCML_LOG": "debug"}):
        done = subprocess.run(
            [sys.executable, SCRIPT, kind, path, *first],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env={**env, **log},
        )
        assert done.returncode == 0, done.stderr
        if log:
            assert said in done.stderr
        else:
            assert done.stderr == ""
