"""ONNX Runtime where something is wrong: cut files, no library, an old one; exits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyasyncml as ml
from pyasyncml.backends import onnxruntime as backend

pytest.importorskip("onnx")
if importlib.util.find_spec("onnxruntime") is None:
    pytest.skip("onnxruntime is not installed", allow_module_level=True)

import onnx_models as models

SCRIPTS = Path(__file__).parent / "isolated"


def run_script(script, *args, **env):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, **env},
    )


def ends_well(done):
    assert (done.returncode, done.stderr) == (0, "")


# --- files ---


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_a_load_error_that_names_it(run, tmp_path, keep):
    path = Path(models.digits_like(tmp_path / "m.onnx"))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])

    async def main():
        with pytest.raises(ml.LoadError) as caught:
            await ml.load(path, backend="onnx")
        assert str(tmp_path / "m.onnx") in str(caught.value)

    run(main)


def test_a_message_that_is_no_utf8_is_reported_all_the_same(run, tmp_path):
    content = Path(models.unary(tmp_path / "m.onnx", "Relu")).read_bytes()
    (tmp_path / "m.onnx").write_bytes(content.replace(b"Relu", b"Re\xff\xfe"))

    async def main():
        with pytest.raises(ml.LoadError) as caught:
            await ml.load(tmp_path / "m.onnx", backend="onnx")
        assert str(caught.value).encode()

    run(main)


def test_silent_unless_the_log_is_asked_for(tmp_path):
    path = models.scale(tmp_path / "m.onnx", 2.0)
    ends_well(run_script("orders.py", f"onnx={path}"))
    done = run_script("orders.py", f"onnx={path}", PYASYNCML_LOG="debug")
    assert done.returncode == 0
    assert done.stderr.startswith("pyasyncml: onnxruntime: ")


def test_nothing_is_written_to_the_users_cache(tmp_path):
    path = models.scale(tmp_path / "m.onnx", 2.0)
    cache = tmp_path / "cache"
    ends_well(run_script("orders.py", f"onnx={path}", XDG_CACHE_HOME=str(cache)))
    assert not cache.exists()


# --- the library ---


@pytest.fixture
def unopened(monkeypatch):
    """As if the library hadn't been opened in this process, and none was named."""
    monkeypatch.setattr(backend, "_capsule", None)
    monkeypatch.delenv("PYASYNCML_ONNXRUNTIME", raising=False)
    return monkeypatch


def test_a_missing_library_names_the_extra(unopened):
    unopened.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ml.LoadError, match=r"pip install 'pyasyncml\[onnx\]'"):
        backend.capsule()


def test_a_wheel_without_the_library_says_which_have_one(unopened, tmp_path):
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    (tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_shared.so").touch()
    unopened.syspath_prepend(str(tmp_path))
    with pytest.raises(ml.LoadError, match=r"1\.19 or newer is needed"):
        backend.capsule()


FAKE = """
static const void *table(unsigned version) { (void)version; return 0; }
static const char *version(void) { return "1.15.1"; }
static const struct { const void *(*a)(unsigned); const char *(*b)(void); } base = {
    table, version};
const void *OrtGetApiBase(void) { return &base; }
"""


def test_an_old_library_says_which_versions_will_do(tmp_path):
    (tmp_path / "fake.c").write_text(FAKE)
    library = tmp_path / "libonnxruntime.so"
    compiler = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", str(library)]
    try:
        subprocess.run([*compiler, str(tmp_path / "fake.c")], check=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    path = models.scale(tmp_path / "m.onnx", 2.0)
    for named, message in [
        (library, "ONNX Runtime 1.15.1 can't be used: version 1.16 or newer"),
        (tmp_path / "none.so", "ONNX Runtime can't be loaded: "),
        (tmp_path / "fake.c", "ONNX Runtime can't be loaded: "),
    ]:
        done = run_script("orders.py", f"onnx={path}", PYASYNCML_ONNXRUNTIME=str(named))
        assert done.returncode == 1
        assert f"pyasyncml.errors.LoadError: {message}" in done.stderr


# --- the process ---


def test_serving_imports_no_onnxruntime(tmp_path):
    path = models.scale(tmp_path / "m.onnx", 2.0)
    ends_well(run_script("imports_no_framework.py", path))


@pytest.mark.parametrize("how", ["exit", "return", "stopped", "fork"])
def test_a_process_ends_well_with_runs_in_flight(tmp_path, how):
    path = models.loop(tmp_path / "m.onnx")
    ends_well(run_script("onnx_exit_in_flight.py", path, how))
