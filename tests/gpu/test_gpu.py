"""On real GPUs what test_devices.py checks on simulated ones."""

from __future__ import annotations

import pytest
from device_checks import CHECKS, devices_named_in_a_program_are_where_it_runs
from device_service_checks import SERVICE_CHECKS

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA device here"
    ),
]


@pytest.fixture
def names():
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


@pytest.mark.parametrize(
    "check", [*CHECKS, *SERVICE_CHECKS], ids=lambda check: check.__name__
)
def test_on_gpus(check, names):
    check(names)


def test_devices_named_in_a_program_are_where_it_runs(names, tmp_path):
    devices_named_in_a_program_are_where_it_runs(names, tmp_path)
