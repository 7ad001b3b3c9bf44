"""The tensorflow backend and the process that it is in."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import saved_models

import pyasyncml as ml

saved_models.require_tensorflow()

ISOLATED = Path(__file__).parent / "isolated"


@pytest.fixture(scope="module")
def models(saved_model_folder):
    return saved_model_folder


def run(*command, timeout=110, **environment):
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("TF_", "PYASYNCML"))
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**env, **environment},
        check=False,
    )


def run_source(source, **environment):
    return run("-c", textwrap.dedent(source), **environment)


def ends_well(done, stdout=None):
    assert (done.returncode, done.stderr) == (0, "")
    assert stdout is None or done.stdout == stdout


# --- surroundings ---


def test_serving_and_training_import_no_tensorflow(models):
    ends_well(run(ISOLATED / "imports_no_framework.py", models))


def test_nothing_is_said_unless_it_is_asked_for(models):
    load = ISOLATED / "orders.py", f"savedmodel={models / 'twice'}"
    ends_well(run(*load), "ended well\n")
    done = run(*load, PYASYNCML_LOG="debug")
    assert done.returncode == 0
    assert "oneDNN" in done.stderr
    assert "Reading SavedModel" in done.stderr


def test_what_others_say_while_the_library_loads_is_said(models):
    done = run_source(
        """
        import os, threading
        from pyasyncml.backends import tensorflow

        going = True
        count = 0

        def talk():
            global count
            while going:
                os.write(2, b"%d\\n" % count)
                count += 1

        thread = threading.Thread(target=talk)
        thread.start()
        tensorflow.capsule()
        going = False
        thread.join()
        os.write(1, b"%d" % count)
        """
    )
    assert done.returncode == 0
    # What TensorFlow says comes in pieces: a number in the middle of one of its lines
    # goes where that goes.
    numbers = {int(number) for number in re.findall(r"(\d+)\n", done.stderr)}
    said = set(range(int(done.stdout)))
    assert len(said) > 100
    assert len(said - numbers) <= len(said) // 100 + 4


@pytest.mark.parametrize("how", ["keeps", "drops", "fork"])
def test_process_ends_while_tensorflow_runs(models, how):
    for _ in range(3):
        ends_well(run(ISOLATED / "tensorflow_exit.py", models / "several", how))


def test_a_signature_compiled_by_xla_runs(models):
    """Whose compiler's threads stay, under the name of the worker that began them."""
    done = run_source(
        f"""
        import asyncio, numpy as np
        import pyasyncml as ml

        async def main():
            async with ml.load({str(models / "several")!r}, entry="xla") as model:
                x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
                raised = np.exp(2 * x)
                expected = raised / raised.sum(1, keepdims=True)
                np.testing.assert_allclose(await model.infer(x), expected, rtol=1e-5)

        asyncio.run(main())
        """
    )
    ends_well(done)


def test_live_keras_models_and_functions_run_with_one_line_and_give_numpy(models):
    done = run(ISOLATED / "tensorflow_live.py", models, TF_CPP_MIN_LOG_LEVEL="3")
    assert done.returncode == 0, done.stderr


# --- the library ---


def test_without_tensorflow_the_error_names_the_extra(models):
    done = run_source(
        f"""
        import asyncio, importlib.util
        import pyasyncml as ml

        find = importlib.util.find_spec

        def find_others(name, package=None):
            return None if name == "tensorflow" else find(name, package)

        importlib.util.find_spec = find_others

        async def main():
            try:
                await ml.load({str(models / "keras")!r})
            except ml.LoadError as error:
                assert "pip install 'pyasyncml[tensorflow]'" in str(error), error
                print("refused")

        asyncio.run(main())
        reasons = [d.reason for d in ml.devices() if d.backend == "tensorflow"]
        assert "isn't installed" in reasons[0]
        """
    )
    ends_well(done, "refused\n")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "has no libtensorflow_cc.so.2: supported are 2.16 and later"),
        ("", "doesn't load"),
        ("int x;", "has no TF_Version"),
        ('char *TF_Version(void) { return "2.9.1"; }', "TensorFlow 2.9.1 .* 2.16"),
        ('char *TF_Version(void) { return "3.0.0"; }', "TensorFlow 3.0.0 .* 2.16"),
        (
            'char *TF_Version(void) { return "2.30.0"; }',
            "2.30.0 .* has no TF_NewStatus",
        ),
    ],
)
def test_a_version_that_isnt_supported_is_named(tmp_path, models, source, message):
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").touch()
    library = package / "libtensorflow_cc.so.2"
    if source == "":
        library.write_bytes(b"no library")
    elif source is not None:
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        if shutil.which(compiler) is None:
            pytest.skip("needs a C compiler")
        (tmp_path / "fake.c").write_text(source)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", library, tmp_path / "fake.c"],
            check=True,
        )
    done = run_source(
        f"""
        import asyncio, re
        import pyasyncml as ml

        async def main():
            for _ in range(2):
                try:
                    await ml.load({str(models / "keras")!r})
                except ml.LoadError as error:
                    assert re.search({message!r}, str(error)), error
                else:
                    raise AssertionError("loaded")

        asyncio.run(main())
        """,
        PYTHONPATH=str(tmp_path),
    )
    ends_well(done)


def test_loading_again_and_again_leaves_nothing(models):
    def threads():
        return len(os.listdir("/proc/self/task"))

    async def once():
        async with ml.load(models / "keras", instances=2, threads=2):
            pass

    asyncio.run(once())
    before = threads()
    for _ in range(5):
        asyncio.run(once())
    assert threads() <= before
