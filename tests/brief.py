"""Runs of tests that elsewhere run in full: sanitized ones, and those on other Pythons.

PYASYNCML_TESTS_BRIEF is set to a number there. A test that takes `run` is run on one
kind of loop, on another one with another number, and what is done many times is done
less often.
"""

from __future__ import annotations

import os
import zlib

import pytest

# Processes that tests start are none of these.
NUMBER = os.environ.pop("PYASYNCML_TESTS_BRIEF", None)
LOOPS = ("asyncio", "uvloop", "asyncio-debug")


def times(many: int, few: int) -> int:
    return many if NUMBER is None else few


class OneLoopEach:
    """Leaves out what runs on the other kinds of loop."""

    def __init__(self, number: int) -> None:
        self.number = number

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        left_out = {item for item in items if self.leaves_out(item)}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]

    def leaves_out(self, item: pytest.Item) -> bool:
        call = getattr(item, "callspec", None)
        kind = call.params.get("run") if call is not None else None
        if kind not in LOOPS:
            return False
        test = item.nodeid.replace(kind, "", 1)
        return kind != LOOPS[(zlib.crc32(test.encode()) + self.number) % 3]


def register(config: pytest.Config) -> None:
    if NUMBER is not None:
        config.pluginmanager.register(OneLoopEach(int(NUMBER)), "one loop each")
