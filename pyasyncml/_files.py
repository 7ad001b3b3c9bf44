"""What a model file is, from its content."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile

from ._onnx_file import is_onnx
from .errors import LoadError

BACKENDS = ("torch", "onnxruntime", "tensorflow", "xla")
_SHORT = {"onnx": "onnxruntime"}
#: Members of what export.jax writes.
_BUNDLE = {"manifest", "programs/0"}


def identify(path: str, backend: str | None, sha256: str | None) -> str:
    """The name of the backend that reads this file, its checksum verified.

    "torch.export" and "torch.compiled" are kinds of programs that "torch" runs.

    Raises `LoadError`.
    """
    backend = _SHORT.get(backend, backend) if backend is not None else None
    if backend is not None and backend not in BACKENDS:
        raise LoadError(
            f"backend={backend!r}: there is no such backend for files; "
            f"there is {', '.join(map(repr, BACKENDS))}"
        )
    if os.path.isdir(path):
        return _identify_folder(path, backend, sha256)
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file") from None
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}") from error
    if size == 0:
        raise LoadError(f"{path}: the file is empty")
    _verify(path, sha256)
    if backend == "tensorflow":
        raise LoadError(f"{path}: is a file; a SavedModel is a folder")
    if backend == "torch":
        return _kind_of_archive(_without_top_folder(_names(path))) or backend
    if backend is None:
        with open(path, "rb") as file:
            if is_onnx(file, size):
                return "onnxruntime"
    return backend or _identify_content(path, magic)


def is_bundle(path: str) -> bool:
    """Whether export.jax wrote it."""
    return set(_names(path)) >= _BUNDLE


def _names(path: str) -> list[str]:
    """What a zip archive holds; nothing if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return []


def _without_top_folder(names: list[str]) -> list[str]:
    return [name.partition("/")[2] for name in names]


def _kind_of_archive(members: list[str]) -> str | None:
    """What torch wrote: TorchScript, an exported program, a compiled package."""
    if any(member.startswith("code/") for member in members):
        return "torch"
    if any(member.startswith("data/aotinductor/") for member in members):
        return "torch.compiled"
    if any(member.startswith("models/") for member in members):
        return "torch.export"
    return None


def _identify_folder(path: str, backend: str | None, sha256: str | None) -> str:
    if backend not in (None, "tensorflow"):
        raise LoadError(f"{path}: is a folder; backend={backend!r} reads files")
    if not os.path.isfile(os.path.join(path, "saved_model.pb")):
        raise LoadError(
            f"{path}: is a folder without a saved_model.pb; of folders, SavedModels "
            "are read (tf.saved_model.save, or Keras's model.export)"
        )
    _verify(path, sha256)
    return "tensorflow"


def _identify_content(path: str, magic: bytes) -> str:
    if magic[:4] != b"PK\x03\x04":
        kind = "a pickle" if magic[:1] == b"\x80" else "no format that is known"
        raise LoadError(
            f"{path}: holds {kind}; a TorchScript archive (torch.jit.script or "
            "torch.jit.trace, then .save), a .pt2 program (pyasyncml.export.torch, "
            "torch.export.save) or an ONNX model was expected"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise LoadError(
            f"{path}: is a damaged or truncated archive ({error})"
        ) from error
    if set(names) >= _BUNDLE:
        return "xla"
    members = _without_top_folder(names)
    found = _kind_of_archive(members)
    if found is not None:
        return found
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
            beside = path.rstrip("/") + ".sha256"
            with open(beside, encoding="ascii", errors="replace") as file:
                sha256 = file.read(4096).split(maxsplit=1)[0]
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, IndexError) as error:
            raise LoadError(f"{path}.sha256: can't be read ({error})") from error
        said_by = path + ".sha256"
    expected = sha256.lower()
    if re.fullmatch("[0-9a-f]{64}", expected) is None:
        raise LoadError(f"{said_by}: expected 64 hexadecimal digits, got {sha256!r}")
    try:
        found = checksum(path)
    except OSError as error:
        raise LoadError(f"{error.filename}: {error.strerror}") from error
    if found != expected:
        raise LoadError(
            f"{path}: the checksum doesn't match {said_by}: expected {expected}, "
            f"the {'folder' if os.path.isdir(path) else 'file'} has {found}"
        )


def checksum(path: str) -> str:
    """The SHA-256 of a file, in hex; of a folder that of the list of its files', as
    ``find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`` has it.
    """
    digest = hashlib.sha256()
    if os.path.isdir(path):
        names = [
            os.path.join(folder, name)
            for folder, _, files in os.walk(path)
            for name in files
        ]
        for name in sorted(os.path.relpath(name, path) for name in names):
            line = f"{checksum(os.path.join(path, name))}  ./{name}\n"
            digest.update(os.fsencode(line))
        return digest.hexdigest()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
