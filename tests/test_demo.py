"""The demo: its parts, and its course from end to end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
for needed in ("sklearn", "scipy", "matplotlib", "rich", "silero_vad"):
    pytest.importorskip(needed)

from pyasyncml import demo  # noqa: E402 - needs what is checked above
from pyasyncml.demo import audio, digits, heartbeat, run, speech  # noqa: E402

pytestmark = pytest.mark.torch


def test_quick_demo_ends_well_with_a_table_and_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "lag.png"
    command = [sys.executable, "-m", "pyasyncml", "demo", "--quick", "--plot", plot]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("accuracy", "requests per second", "loop lag p99", "to_thread"):
        assert row in done.stdout
    assert str(plot) in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["lag.png"]


UNTRAINED = """
import dataclasses, pathlib, sys
from pyasyncml import demo
from pyasyncml.demo import run

run.QUICK = dataclasses.replace(run.QUICK, epochs=1, seconds_of_audio=2.0)
sys.exit(demo.main(quick=True, plot=pathlib.Path("lag.png")))
"""


def test_demo_exits_with_one_where_the_net_has_not_learnt(tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNTRAINED]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "below 0.97" in done.stdout


def test_demo_names_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(demo._NEEDED, "no_such_module", "no-such-package")
    assert demo.main() == 2
    assert "The demo needs no-such-package." in capsys.readouterr().err


def test_net_learns_the_digits_and_leaves_the_random_state_alone() -> None:
    data = digits.load_data()
    assert len(data.train_labels) + len(data.test_labels) == 1797
    before = torch.get_rng_state()
    trained = asyncio.run(digits.train(data, epochs=run.QUICK.epochs))
    assert trained.served > 0
    net = trained.net
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        called = net(data.test_images).argmax(dim=1)
    assert (called == data.test_labels).double().mean() >= run.REQUIRED_ACCURACY


def test_audio_is_the_same_for_the_same_seed() -> None:
    first, again = audio.synthesise(4.0, seed=3), audio.synthesise(4.0, seed=3)
    other = audio.synthesise(4.0, seed=4)
    assert first.chunks.shape == (4 * audio.RATE // audio.CHUNK, audio.CHUNK)
    assert first.chunks.dtype == np.float32
    assert np.abs(first.chunks).max() <= 1.0
    assert np.array_equal(first.chunks, again.chunks)
    assert not np.array_equal(first.chunks, other.chunks)


def test_detector_tells_babble_from_the_rest() -> None:
    stream = audio.synthesise(12.0)
    assert 0.2 < stream.babble.mean() < 0.8
    detector = torch.jit.load(str(speech.model_path())).eval()
    with torch.inference_mode():
        probabilities = np.array(
            [
                detector(row, audio.RATE).item()
                for row in torch.tensor(stream.chunks)[:, None]
            ]
        )
    assert speech.agreement(probabilities, stream.babble) > 0.9
    assert speech.agreement(1.0 - probabilities, stream.babble) < 0.1


def test_heartbeat_counts_the_beats_of_a_loop_that_was_blocked() -> None:
    async def block() -> heartbeat.Heartbeat:
        with heartbeat.Heartbeat() as beat:
            while not beat.due:
                await asyncio.sleep(0)
            time.sleep(0.03)  # what is measured
            answered = len(beat.due)
            while len(beat.due) == answered:
                await asyncio.sleep(0)
        return beat

    beat = asyncio.run(block())
    assert max(beat.lag) >= 0.028
    assert len(beat.due) >= 30
    assert np.allclose(np.diff(beat.due), 1e-3)
    assert min(beat.lag) >= 0.0


def test_heartbeat_leaves_no_file_descriptor_behind() -> None:
    async def beat() -> None:
        with heartbeat.Heartbeat():
            await asyncio.sleep(0)

    asyncio.run(beat())
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(10):
        asyncio.run(beat())
    assert set(os.listdir("/proc/self/fd")) == before
