"""Texts of different lengths: MiniLM sentence embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .contenders import Contender, Starter, Workload, batchers, servers
from .minilm import Texts

IN_FLIGHT = 64
OPEN_SHARE = 0.7  # of greedy's texts a second, for everyone's open loop
SLOWER = 10  # as many times the seconds of the other suites: a text takes milliseconds


def taking_turns(name: str, start: Starter) -> Starter:
    """Gives the contender the next text where the load gives it all of them."""

    async def started(workload: Workload) -> Contender:
        contender = await start(workload)
        infer = contender.infer

        def infer_pair(texts: Texts) -> Any:
            return infer(*texts.next())

        def infer_next(texts: Texts) -> Any:
            return infer(texts.next())

        takes_pairs = contender.model is not None
        return Contender(
            name, infer_pair if takes_pairs else infer_next, contender.close
        )

    return started


def starters(say: Callable[[str], None]) -> dict[str, Starter]:
    everyone = batchers() | servers(say)
    return {name: taking_turns(name, start) for name, start in everyone.items()}
