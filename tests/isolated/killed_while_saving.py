"""Kills a process that saves checkpoints, over and over, at moments of chance. What is
left in the folder is read after each kill."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from pyasyncml.training._checkpoint import (
    load_checkpoint,
    save_checkpoint,
    take_checkpoint,
)

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
path = folder / "run.ckpt"
torch.set_num_threads(1)  # a child of fork has no others
module = torch.nn.Linear(200, 200)
optimizer = torch.optim.SGD(module.parameters(), lr=0.1)


def save(number):
    with torch.no_grad():
        module.weight.fill_(number)
    save_checkpoint(
        path, take_checkpoint(module, None, optimizer, position={"number": number})
    )


def save_forever(first, pipe):
    for number in range(first, 1 << 30):
        save(number)
        os.write(pipe, b"%d\n" % number)


last = 0
save(last)
for _ in range(kills):
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        save_forever(last + 1, writes)
    os.close(writes)
    head = os.read(reads, 1)  # the first is saved
    time.sleep(random.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(reads, "rb") as said:
        told = [int(line) for line in (head + said.read()).split(b"\n")[:-1] if line]
    checkpoint = load_checkpoint(path)
    number = checkpoint.position["number"]
    # What was told to be saved is, or the one that was being saved is too.
    assert number in (told[-1], told[-1] + 1) if told else number > last, (told, number)
    assert checkpoint.tensors["module.weight"].eq(number).all()
    last = number
save(last + 1)
left = sorted(p.name for p in folder.iterdir())
assert left == ["run.ckpt"], left
