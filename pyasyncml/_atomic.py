"""Files that appear whole or not at all, also when the process or the machine dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def sync(path: str | os.PathLike[str]) -> None:
    """Returns once a file, or a folder's names, would outlive the machine."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(made: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """A file beside `path` takes its place: synced before it has the name, and the
    folder after."""
    sync(made)
    os.replace(made, path)
    sync(os.path.dirname(os.path.abspath(path)))


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its place. What
    killed writers left is removed.

    Raises `OSError`, and what `write` does; `path` is then as it was.
    """
    path = Path(os.path.realpath(path))
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file, temporary = _open_locked(path, folder)
        try:
            with open(file, "wb", closefd=False) as stream:
                write(stream)
            put_in_place(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(file)
    finally:
        os.close(folder)


def _open_locked(path: Path, folder: int) -> tuple[int, Path]:
    """A new temporary file, locked for as long as it is open: what isn't locked has
    lost its writer. The folder's lock keeps others from looking between the two."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    locked = False
    with contextlib.suppress(OSError):  # some file systems don't lock folders
        fcntl.flock(folder, fcntl.LOCK_EX)
        locked = True
    try:
        if locked:
            _remove_abandoned(path)
        file = os.open(
            temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
        )
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        if locked:
            fcntl.flock(folder, fcntl.LOCK_UN)
    return file, temporary


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{_literal(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # renamed or locked: it has its writer
            file = os.open(left, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(left)
            finally:
                os.close(file)


def _literal(name: str) -> str:
    """A name in which a glob finds nothing special."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
