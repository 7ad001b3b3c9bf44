"""Files that appear whole or not at all, with their checksums."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable

from .._atomic import put_in_place
from .._files import checksum


def write_with_checksum(path: str, write: Callable[[str], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its place, and a
    file of the same name with ".sha256" added, as `sha256sum` writes it.

    A crash at any moment leaves the old file or the new one, if without its checksum.
    """
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(prefix=".pyasyncml-", dir=folder) as temporary:
        made = os.path.join(temporary, os.path.basename(path))
        write(made)
        beside = made + ".sha256"
        with open(beside, "w", encoding="ascii") as file:
            file.write(f"{checksum(made)}  {os.path.basename(path)}\n")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ".sha256")
        put_in_place(made, path)
        put_in_place(beside, path + ".sha256")
