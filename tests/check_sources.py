"""Checks what no linter knows: how long a file is, and what the engine includes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csrc", "pyasyncml", "tests", "benchmarks", "examples")
SUFFIXES = {".c", ".h", ".cpp", ".py", ".pyi"}
MOST_LINES = 800


def sources() -> list[Path]:
    """The sources, without what builds put beside them."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return [
        path
        for path in sorted(found)
        if path.suffix in SUFFIXES and not {"build", "_csrc"} & set(path.parts)
    ]


def complaints() -> list[str]:
    """One line for each file that breaks a rule."""
    found = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        lines = text.count("\n")
        if lines > MOST_LINES:
            found.append(f"{name}: {lines} lines, {MOST_LINES} at most")
        if name.parts[:2] == ("csrc", "engine") and re.search(
            r"^\s*#\s*include\s*[<\"]Python\.h", text, re.MULTILINE
        ):
            found.append(f"{name}: the engine includes no Python.h")
        if re.search(r"^\s*#\s*include\s*\"[^\"]+\.c(pp)?\"", text, re.MULTILINE):
            found.append(f"{name}: includes a source file")
    return found


if __name__ == "__main__":
    found = complaints()
    print("\n".join(found) or f"{len(sources())} sources keep the rules")
    sys.exit(1 if found else 0)
