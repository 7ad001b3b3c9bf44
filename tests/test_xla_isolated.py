"""XLA in processes of their own: exits with runs in flight, forks, other frameworks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from xla_programs import jax

from pyasyncml import export

pytestmark = pytest.mark.xla

SCRIPT = Path(__file__).parent / "isolated" / "xla.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Takes some 50 ms."""

    def slow(x):
        return jax.lax.fori_loop(0, 60, lambda _, y: y @ x + x, x)

    path = str(tmp_path_factory.mktemp("xla") / "slow")
    export.jax(slow, np.zeros((256, 256), np.float32), path, None)
    return path


def ends_well(what, bundle):
    # Without what JAX has set in this process to keep XLA quiet.
    plain = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, bundle],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**plain, "PYASYNCML_XLA_OPTIONS": "cpu_device_count=3"},
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["exits", "closing", "never_closed"])
def test_process_exits_with_runs_in_flight(how, bundle):
    for _ in range(3):
        ends_well(how, bundle)


@pytest.mark.parametrize("how", ["forks", "forks_after_a_look"])
def test_a_forked_child_is_refused_and_the_parent_goes_on(how, bundle):
    ends_well(how, bundle)


@pytest.mark.torch
@pytest.mark.parametrize("order", ["torch,jax,xla", "xla,jax,torch", "jax,xla,torch"])
def test_other_frameworks_live_beside_it_in_any_order(order, bundle):
    ends_well(order, bundle)
