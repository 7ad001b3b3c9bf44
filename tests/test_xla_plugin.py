"""What becomes of a plugin's failures: lost devices, failing runs, plugins that find
nothing. Each in a process of its own, over tests/xla_stub/plugin.c."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from xla_programs import jax

from pyasyncml import export
from pyasyncml.backends import xla

pytestmark = pytest.mark.xla

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    library = tmp_path_factory.mktemp("stub") / "stub.so"
    command = [os.environ.get("CC", "cc"), "-std=c11", "-D_GNU_SOURCE", "-shared"]
    command += ["-fPIC", "-Wall", "-Werror", "-o", str(library)]
    command += ["-I", str(HERE.parent / "csrc" / "backends" / "xla")]
    try:
        subprocess.run([*command, str(HERE / "xla_stub" / "plugin.c")], check=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    return str(library)


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("xla") / "double")
    export.jax(lambda x: 2 * x, np.zeros(4, np.float32), path, None)
    return path


def ends_well(what, stub, bundle, plugins="stub:{stub}", **environment):
    ((_, cpu),) = [found for found in xla._plugins() if found[0] == "cpu"]
    plain = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, HERE / "isolated" / "xla_stub.py", what, stub, bundle],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **plain,
            "PYASYNCML_STUB_OF": cpu,
            "PJRT_NAMES_AND_LIBRARY_PATHS": plugins.format(stub=stub, cpu=cpu),
            "PYASYNCML_XLA_OPTIONS": "cpu_device_count=2",
            **environment,
        },
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("when", ["lost", "lost_late"])
def test_a_device_that_is_lost_is_taken_out_until_a_reload(when, stub, double):
    ends_well(when, stub, double)


@pytest.mark.parametrize("when", ["failing", "failing_late"])
def test_a_program_that_fails_loses_no_device(when, stub, double):
    ends_well(when, stub, double)


def test_a_device_that_is_lost_takes_only_its_own_requests_along(stub, double):
    ends_well("one_of_two", stub, double)


def test_a_trainer_whose_device_was_lost_comes_back_by_a_restore(stub, tmp_path):
    path = str(tmp_path / "step")
    zeros = np.zeros(4, np.float32)
    export.jax(lambda s, x: (s + x, x.sum()), zeros, path, None, state=zeros)
    ends_well("trainer", stub, path)


def test_all_instances_on_a_device_share_what_it_takes(stub, tmp_path):
    def slow(x):
        return jax.lax.fori_loop(0, 8, lambda _, y: y @ x + x, x)

    path = str(tmp_path / "slow")
    export.jax(slow, np.zeros((256, 256), np.float32), path, None)
    ends_well("crowd", stub, path)


def test_a_plugin_without_devices_is_passed_over(stub, double):
    environment = {
        "PYASYNCML_STUB_EMPTY": "1",
        "PYASYNCML_XLA_OPTIONS": "cpu_device_count=1",
    }
    ends_well("empty_first", stub, double, "none:{stub},cpu:{cpu}", **environment)
    ends_well("empty_only", stub, double, **environment)
