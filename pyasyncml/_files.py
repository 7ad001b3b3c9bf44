"""What a model file is, from its content."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile

from .errors import LoadError

BACKENDS = ("torch", "xla")


def identify(path: str, backend: str | None, sha256: str | None) -> str:
    """The name of the backend that reads this file, its checksum verified.

    Raises `LoadError`.
    """
    if backend is not None and backend not in BACKENDS:
        raise LoadError(
            f"backend={backend!r}: there is no such backend for files; "
            f"there is {', '.join(map(repr, BACKENDS))}"
        )
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LoadError(
            f"{path}: is a folder; a TorchScript file was expected"
        ) from None
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}") from error
    if size == 0:
        raise LoadError(f"{path}: the file is empty")
    _verify(path, sha256)
    return backend or _identify_content(path, magic)


def _identify_content(path: str, magic: bytes) -> str:
    if magic[:4] != b"PK\x03\x04":
        kind = "a pickle" if magic[:1] == b"\x80" else "no format that is known"
        raise LoadError(
            f"{path}: holds {kind}; a TorchScript archive was expected "
            "(torch.jit.script or torch.jit.trace, then .save)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise LoadError(
            f"{path}: is a damaged or truncated archive ({error})"
        ) from error
    if {"manifest", "programs/0"} <= set(names):
        return "xla"
    members = [member.partition("/")[2] for member in names]
    if any(member.startswith("code/") for member in members):
        return "torch"
    if any(member.startswith(("models/", "data/aotinductor/")) for member in members):
        raise LoadError(
            f"{path}: holds a torch.export program; "
            "this version reads TorchScript archives"
        )
    if "data.pkl" in members:
        raise LoadError(
            f"{path}: holds pickled weights (torch.save), not a program; save one with "
            "torch.jit.script(module).save(path)"
        )
    raise LoadError(
        f"{path}: is a zip archive, but no TorchScript archive: it has no code/"
    )


def _verify(path: str, sha256: str | None) -> None:
    said_by = "sha256="
    if sha256 is None:
        try:
            with open(path + ".sha256", encoding="ascii", errors="replace") as file:
                sha256 = file.read(4096).split(maxsplit=1)[0]
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, IndexError) as error:
            raise LoadError(f"{path}.sha256: can't be read ({error})") from error
        said_by = path + ".sha256"
    expected = sha256.lower()
    if re.fullmatch("[0-9a-f]{64}", expected) is None:
        raise LoadError(f"{said_by}: expected 64 hexadecimal digits, got {sha256!r}")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise LoadError(
            f"{path}: the checksum doesn't match {said_by}: expected {expected}, "
            f"the file has {digest.hexdigest()}"
        )
