"""Checkpoints: whole or not at all, and gone on from to the bit."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

pytestmark = pytest.mark.torch

import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
from runs import runs  # noqa: E402
from training_nets import (  # noqa: E402
    batches,
    make,
    run_steps,
    same_state,
    torch_loop,
    trace,
)

from pyasyncml import LoadError  # noqa: E402
from pyasyncml._weights import copy_of  # noqa: E402
from pyasyncml.training._checkpoint import (  # noqa: E402
    load_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    take_checkpoint,
)
from pyasyncml.training._schedule import RealScheduler, Schedule  # noqa: E402


class Run:
    """A training run of a net, made anew as a program that starts again would."""

    def __init__(self, net="transformer with dropout", optimizer=torch.optim.Adam):
        self.net, self.data = make(net)[0], make(net)[1:]
        self.optimizer = optimizer(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.generator = torch.Generator().manual_seed(1)
        self.step = trace(self.net, self.optimizer, self.data, generator=self.generator)
        self.real = RealScheduler(self.optimizer, self.scheduler, "step")

    @property
    def parts(self):
        return {
            "schedule": self.real,
            "step": self.step,
            "generators": [self.generator],
        }

    def train(self, first, last):
        chosen = list(batches(last, *self.data))[first:]
        schedule = Schedule(self.step, self.scheduler, "step")
        losses = run_steps(self.step, iter(chosen), schedule)
        self.real.advance(last - first, 0)
        return losses

    def take(self, **position):
        return take_checkpoint(
            self.net, None, self.optimizer, position=position, **self.parts
        )

    def restore(self, checkpoint):
        position = restore_checkpoint(
            checkpoint, self.net, None, self.optimizer, **self.parts
        )
        self.step.refresh()
        return position

    def state(self):
        return (
            self.net.state_dict(),
            self.optimizer.state_dict(),
            self.scheduler.state_dict(),
            self.generator.get_state(),
        )


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.Adam,
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, dampening=0.5),
        lambda p, lr: torch.optim.RMSprop(p, lr, momentum=0.5),
        torch.optim.Adagrad,
        lambda p, lr: torch.optim.AdamW(p, torch.tensor(lr)),
    ],
    ids=["Adam", "SGD", "RMSprop", "Adagrad", "AdamW with a tensor as lr"],
)
@pytest.mark.parametrize("steps", [0, 5])
def test_a_run_goes_on_to_the_bit_from_a_checkpoint(tmp_path, optimizer, steps):
    whole = Run("mlp with dropout", optimizer)
    expected = whole.train(0, steps + 4)
    first = Run("mlp with dropout", optimizer)
    first.train(0, steps)
    save_checkpoint(tmp_path / "a.ckpt", first.take(step=steps))
    first.train(0, 3)  # what comes after the copy isn't in it

    for run in (Run("mlp with dropout", optimizer), first):
        checkpoint = load_checkpoint(tmp_path / "a.ckpt")
        assert run.restore(checkpoint) == {"step": steps}
        assert run.train(steps, steps + 4) == expected[steps:]
        assert same_state(run.state(), whole.state())


@pytest.mark.parametrize("net", ["mlp", "convolutional"])
def test_restoring_writes_into_the_tensors_that_are_there(tmp_path, net):
    run = Run(net)
    run.train(0, 2)
    before = [t.data_ptr() for t in run.net.state_dict().values()]
    state = run.net.state_dict()
    values = {name: tensor.clone() for name, tensor in state.items()}
    save_checkpoint(tmp_path / "a.ckpt", run.take())
    run.train(2, 4)
    run.restore(load_checkpoint(tmp_path / "a.ckpt"))
    assert not run.step.refresh()
    assert [t.data_ptr() for t in run.net.state_dict().values()] == before
    assert same_state(run.net.state_dict(), values)


def test_pytorch_goes_on_from_a_checkpoint_too(tmp_path):
    run, twin = Run("mlp"), Run("mlp")
    run.train(0, 3)
    save_checkpoint(tmp_path / "a.ckpt", run.take())
    restore_checkpoint(
        load_checkpoint(tmp_path / "a.ckpt"), twin.net, None, twin.optimizer
    )
    after = list(batches(6, *run.data))[3:]
    losses = [torch_loop(r.net, r.optimizer, iter(after)) for r in (run, twin)]
    assert losses[0] == losses[1]
    assert same_state(run.state()[:2], twin.state()[:2])


def test_tensors_are_safetensors_that_others_read(tmp_path):
    run = Run("convolutional")
    run.train(0, 1)
    save_checkpoint(tmp_path / "a.ckpt", run.take())
    read = safetensors.torch.load_file(tmp_path / "a.ckpt")
    state = {
        name.removeprefix("module."): tensor
        for name, tensor in read.items()
        if name.startswith("module.")
    }
    assert same_state(state, dict(run.net.state_dict()))


def test_positions_of_many_kinds_come_back_as_they_were(tmp_path):
    position = {
        "epoch": 3,
        "nan": float("inf"),
        "third": 1 / 3,
        "order": np.arange(5),
        "tensor": torch.arange(3),
        "nested": [(1, "a"), {"$": None, 2: {3}}, b"\0\xff", True],
        "count": collections.Counter({1: 2}),
        "numpy": np.float64(0.1),
    }
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters())
    save_checkpoint(
        tmp_path / "a", take_checkpoint(module, None, optimizer, position=position)
    )
    got = load_checkpoint(tmp_path / "a").position
    assert np.array_equal(got.pop("order"), position.pop("order"))
    assert torch.equal(got.pop("tensor"), position.pop("tensor"))
    assert got == position
    assert type(got["count"]) is collections.Counter
    with pytest.raises(TypeError, match=r"position.where.0 is a builtins.object"):
        take_checkpoint(module, None, optimizer, position={"where": [object()]})


def test_a_checkpoint_is_written_on_another_thread_while_training_goes_on(tmp_path):
    run, twin = Run("mlp"), Run("mlp")
    run.train(0, 2)
    twin.train(0, 2)
    checkpoint = run.take()
    writer = threading.Thread(
        target=save_checkpoint, args=(tmp_path / "a.ckpt", checkpoint)
    )
    writer.start()
    run.train(2, 6)
    writer.join()
    run.restore(load_checkpoint(tmp_path / "a.ckpt"))
    assert same_state(run.state(), twin.state())


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    run = Run("mlp")
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, run.take(step=1))
    whole = path.read_bytes()
    places = {*range(0, len(whole), 211), *range(12), len(whole) - 1}
    for place in sorted(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(LoadError, match="a.ckpt"):
            load_checkpoint(path)
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(LoadError, match="a.ckpt"):
            load_checkpoint(path)


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(LoadError, match="no such file|No such file"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(LoadError, match="irectory"):
        load_checkpoint(tmp_path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(LoadError, match="no checkpoint"):
        load_checkpoint(tmp_path / "weights")
    with pytest.raises(IsADirectoryError):
        save_checkpoint(tmp_path, Run("mlp").take())


def test_a_checkpoint_of_another_module_names_what_differs_and_changes_nothing():
    checkpoint = Run("mlp").take()
    for module, text in (
        (torch.nn.Sequential(torch.nn.Linear(8, 16)), "3.weight is only there"),
        (make("convolutional")[0], "1.running_mean is only here"),
        (make("mlp")[0].double(), r"0.weight is float32\[16, 8\] there, float64"),
    ):
        before = {name: t.clone() for name, t in module.state_dict().items()}
        with pytest.raises(LoadError, match=text):
            restore_checkpoint(
                checkpoint, module, None, torch.optim.Adam(module.parameters())
            )
        assert same_state(dict(module.state_dict()), before)


def test_a_checkpoint_of_another_optimizer_is_refused():
    checkpoint = Run("mlp").take()
    module = make("mlp")[0]
    parameters = list(module.parameters())
    with pytest.raises(LoadError, match="Adam there, SGD here"):
        restore_checkpoint(checkpoint, module, None, torch.optim.SGD(parameters))
    two = torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}])
    with pytest.raises(LoadError, match=r"of \[4\] parameters there, \[2, 2\] here"):
        restore_checkpoint(checkpoint, module, None, two)


def test_saving_that_fails_leaves_the_last_checkpoint_and_nothing_else(tmp_path):
    run = Run("mlp")
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, run.take(step=1))
    bad = run.take(step=2)
    bad.header["position"] = {"step": b""}  # no JSON
    with pytest.raises(TypeError):
        save_checkpoint(path, bad)
    bad = run.take(step=2)
    bad.tensors["module.0.weight"] = torch.empty(2, device="meta")
    with pytest.raises(NotImplementedError):
        save_checkpoint(path, bad)
    assert load_checkpoint(path).position == {"step": 1}
    assert os.listdir(tmp_path) == ["a.ckpt"]
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "missing" / "a.ckpt", run.take())


def test_kill_at_any_moment_leaves_the_last_good_checkpoint(tmp_path):
    script = Path(__file__).parent / "isolated" / "killed_while_saving.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(runs(20))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_modules_copy_is_memory_of_its_own_and_tied_tensors_stay_one():
    run = Run("convolutional")
    run.net.tied = run.net[0].weight
    copies = copy_of(run.net)
    before = {name: tensor.clone() for name, tensor in run.net.state_dict().items()}
    run.train(0, 2)
    assert same_state(copies, before)
    assert copies["tied"] is copies["0.weight"]
