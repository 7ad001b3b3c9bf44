"""Files that appear whole or not at all, also when the process or the machine dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its place: synced
    before it has the name, and the folder after. What killed writers left is removed.

    Raises `OSError`, and what `write` does; `path` is then as it was.
    """
    path = Path(os.path.realpath(path))
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        # Tells who cleans up that somebody is still at it.
        fcntl.flock(file, fcntl.LOCK_EX)
        write(temporary)
        os.fsync(file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(file)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{_literal(path.name)}.*.tmp"):
        try:
            file = os.open(left, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another writer's, just renamed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between a writer's open and its lock the file is empty.
            if os.fstat(file).st_size > 0:
                os.unlink(left)
        except OSError:
            pass
        finally:
            os.close(file)


def _literal(name: str) -> str:
    """A name in which a glob finds nothing special."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
