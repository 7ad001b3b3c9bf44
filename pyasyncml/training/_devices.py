"""Where a torch module is trained: one device, or several with a replica on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..backends import parse_devices


def devices_of(device: Any) -> list[torch.device]:
    """The devices that an argument `device` names. Raises `TypeError` for what is no
    name or list of names, `ValueError` for those that can't share a batch."""
    if not isinstance(device, (str, list, tuple)):
        raise TypeError(
            f"device: expected a str or a list of them, got {type(device).__name__}"
        )
    homes = []
    for name, _ in parse_devices(device):
        home = torch.device(name)
        if home.type == "xla":
            raise ValueError(
                f"device: torch modules aren't trained on {name}: XLA devices run "
                "JAX's programs, training steps with state too, which export.jax writes"
            )
        homes.append(
            home if home.type == "cpu" else torch.device(home.type, home.index or 0)
        )
    if len({home.type for home in homes}) > 1:
        raise ValueError(
            "device: expected devices of one kind, which compute alike, got "
            + ", ".join(map(str, homes))
        )
    for i, home in enumerate(homes):
        # Replicas on one CPU are good for trying it out.
        if home.type != "cpu" and home in homes[:i]:
            raise ValueError(f"device: {home} is named twice")
    for home in homes[1:]:
        try:
            torch.empty(0, device=home)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"device: no {home}: {_first_line(error)}") from error
    return homes


def generators(devices: Sequence[torch.device], seed: int) -> list[torch.Generator]:
    """One for each device, of its kind, each with its own numbers. Alone, or first of
    several, a device draws the same."""
    made = []
    for k, device in enumerate(devices):
        own = seed if k == 0 else derived(seed, k)
        try:
            generator = torch.Generator(device)
        except RuntimeError:  # a device that draws no numbers of its own
            generator = torch.Generator()
        made.append(generator.manual_seed(own))
    return made


def derived(seed: int, replica: int) -> int:
    """Another seed, for another replica."""
    state = np.random.SeedSequence([seed, replica]).generate_state(1, np.uint64)
    return int(state[0])


def move(
    modules: Sequence[torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    home: torch.device,
) -> None:
    """Moves them to the device. Raises `ValueError` where there is none, or where the
    optimizer's state, which stays where it is, would be left behind."""
    for module in modules:
        tensors = (*module.named_parameters(), *module.named_buffers())
        elsewhere = [path for path, tensor in tensors if tensor.device != home]
        if elsewhere and optimizer.state:
            raise ValueError(
                f"device: {elsewhere[0]!r} is not on {home}, and the optimizer has "
                "state beside it already; move the module there (module.to(device)) "
                "before its optimizer has made a step"
            )
        if not elsewhere:
            continue
        before = dict(module.named_parameters())
        try:
            module.to(home)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"device: no {home} to move to: {_first_line(error)}"
            ) from error
        # For some kinds of devices that makes other Parameter objects.
        now = {id(before[path]): new for path, new in module.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [now.get(id(p), p) for p in group["params"]]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
