"""Programs in files: `.pt2` as `torch.export.save` writes it."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch.export import ExportedProgram

from .._tracing import exporting
from ..errors import LoadError
from ._module import _quiet
from ._program import Names

#: A file of ours within the archive: what people call the program's inputs.
_NAMES = "pyasyncml.json"


def save_program(program: ExportedProgram, names: Names, path: str) -> None:
    with exporting, _quiet():
        torch.export.save(program, path, extra_files={_NAMES: names_text(names)})


def names_text(names: Names) -> str:
    axes = {
        path: {str(axis): name for axis, name in named.items()}
        for path, named in names.axes.items()
    }
    return json.dumps({"inputs": names.inputs, "axes": axes})


def names_from(text: str) -> Names:
    try:
        read = json.loads(text)
        return Names(
            tuple(str(name) for name in read["inputs"]),
            {
                str(path): {int(axis): str(name) for axis, name in named.items()}
                for path, named in read["axes"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Names()


def read_program(path: str) -> tuple[ExportedProgram, Names]:
    """What `torch.export.save` wrote, here or elsewhere. Raises `LoadError`."""
    extra: dict[str, Any] = {_NAMES: ""}
    with exporting, _quiet():
        try:
            program = torch.export.load(path, extra_files=extra)
            if not isinstance(program, ExportedProgram):
                raise LoadError(f"{path}: holds no exported program")
            if not extra[_NAMES]:  # of ours, it has been through this
                program = program.run_decompositions({})
        except LoadError:
            raise
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            raise LoadError(
                f"{path}: is no program that this torch reads "
                f"({type(error).__name__}: {text})"
            ) from error
    text = extra[_NAMES]
    return program, names_from(text if isinstance(text, str) else text.decode())
