"""Files that appear whole or not at all, with their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its place, and a
    file of the same name with ".sha256" added, as `sha256sum` writes it.

    A crash at any moment leaves the old file or the new one, if without its checksum.
    """
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(prefix=".pyasyncml-", dir=folder) as temporary:
        made = os.path.join(temporary, os.path.basename(path))
        write(made)
        digest = hashlib.sha256()
        with open(made, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            os.fsync(file.fileno())
        checksum = made + ".sha256"
        with open(checksum, "w", encoding="ascii") as file:
            file.write(f"{digest.hexdigest()}  {os.path.basename(path)}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ".sha256")
        os.replace(made, path)
        os.replace(checksum, path + ".sha256")
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
