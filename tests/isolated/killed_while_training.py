"""Kills a process that trains and saves, over and over, at moments of chance; a new one
goes on from what it finds in the folder. Every loss that any of them saw is compared
with those of a run that nobody disturbed, bit for bit, and so is what is trained.

Arguments: an empty folder, and how many are to be killed."""

import asyncio
import hashlib
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pyasyncml import Trainer

EPOCHS, BATCH = 300, 7

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
path = folder / "run.ckpt"
torch.set_num_threads(1)  # a child of fork has no others
draw = random.Random()


def trainer_and_data():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 4),
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(2))
    trainer = Trainer(
        net,
        loss=functional.cross_entropy,
        optimizer=optimizer,
        scheduler=scheduler,
        scheduler_interval="step",
        seed=3,
    )
    return trainer, (x, x[:, :4].argmax(1))


def digest_of(trainer):
    """Of everything that a run changes."""
    program = trainer._program
    optimizer = program._optimizer.state_dict()["state"]
    tensors = [
        *program._module.state_dict().values(),
        *(optimizer[key][name] for key in optimizer for name in sorted(optimizer[key])),
        torch.tensor(program._optimizer.param_groups[0]["lr"]),
        program._generators[0].get_state(),
    ]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


async def train(say, save):
    """Says where it begins (`at` a step), each step's `loss`, `saving` once everything
    that is about to be saved was said, `saved`, and a digest in the `end`."""
    trainer, data = trainer_and_data()
    async with trainer:
        if path.exists():
            await trainer.restore(path)
        position = trainer._position
        say("at", position.epoch * -(-60 // BATCH) + position.step)
        run = trainer.fit(data, epochs=EPOCHS, batch_size=BATCH)
        said = 0

        def tell():
            nonlocal said
            for loss in run.losses[said:]:
                say("loss", loss.hex())
            said = len(run.losses)

        snapshot = trainer._program.snapshot

        async def told_snapshot(position):
            write = await snapshot(position)
            tell()
            say("saving", len(run.losses))
            return write

        trainer._program.snapshot = told_snapshot
        while save and not run.done():
            await trainer.save(path)
            say("saved", 0)
        await run
        tell()
        say("end", digest_of(trainer))


def child(save):
    """A new process that trains: its number and the pipe that it speaks through."""
    reads, writes = os.pipe()
    number = os.fork()
    if number:
        os.close(writes)
        return number, open(reads, "rb", buffering=0)
    os.close(reads)
    status = 1
    try:
        asyncio.run(
            train(
                lambda word, value: os.write(writes, f"{word} {value}\n".encode()), save
            )
        )
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def words_of(pipe):
    """What was said in whole lines."""
    said = b""
    while block := pipe.read(1 << 16):
        said += block
    pipe.close()
    return [line.split() for line in said.split(b"\n")[:-1]]


class Curve:
    """The undisturbed run's losses, which everybody else's are compared with."""

    def __init__(self):
        number, pipe = child(save=False)
        words = words_of(pipe)
        assert os.waitpid(number, 0)[1] == 0
        self.losses = [value for word, value in words if word == b"loss"]
        self.end = words[-1][1]
        self.seen = 0  # steps without a gap from the first on
        assert len(set(self.losses)) > len(self.losses) // 2

    def compare(self, words):
        """The step that it began at, and those that a checkpoint may stand at now."""
        first = at = int(words[0][1])
        saved, saving = first, None
        for word, value in words[1:]:
            if word == b"loss":
                assert self.losses[at] == value, (first, at, value)
                at += 1
            elif word == b"saving":
                saving = at
            elif word == b"saved":
                saved, saving = saving, None
        assert first <= self.seen, ("steps were lost", first, self.seen)
        self.seen = max(self.seen, at)
        return first, {saved, saved if saving is None else saving}


curve = Curve()
may_stand = {0}
killed = in_save = gone_on = laps = 0
while killed < kills:
    number, pipe = child(save=True)
    head = b""
    while b"saved" not in head[head.find(b"loss") :] and (block := pipe.read(1 << 12)):
        head += block
    time.sleep(draw.random() * 0.04)
    os.kill(number, signal.SIGKILL)
    status = os.waitpid(number, 0)[1]
    rest = b""
    while block := pipe.read(1 << 16):
        rest += block
    pipe.close()
    words = [line.split() for line in (head + rest).split(b"\n")[:-1]]
    before = may_stand
    first, may_stand = curve.compare(words)
    assert first in before, ("another checkpoint than the last", first, before)
    gone_on += first > 0
    if os.WIFSIGNALED(status):
        killed += 1
        in_save += [word for word, _ in words if word != b"loss"][-1] == b"saving"
    else:
        assert status == 0, status
    if words[-1][0] == b"end":  # a lap; the next one begins anew
        assert words[-1][1] == curve.end
        path.unlink()
        may_stand, curve.seen = {0}, 0
        laps += 1
# And the last of them is let run to its end.
number, pipe = child(save=True)
words = words_of(pipe)
assert os.waitpid(number, 0)[1] == 0
first, _ = curve.compare(words)
assert first in may_stand
assert curve.seen == len(curve.losses)
assert words[-1] == [b"end", curve.end]
left = sorted(p.name for p in folder.iterdir())
assert left == ["run.ckpt"], left
print(
    f"{killed} killed, {in_save} of them while they saved, {gone_on} went on from a "
    f"checkpoint, {laps + 1} whole curves of {len(curve.losses)} steps"
)
