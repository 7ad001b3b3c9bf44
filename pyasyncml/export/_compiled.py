"""Programs compiled by AOTInductor, in `.pt2` packages that say what they take.

The compiled code checks none of its inputs: a wrong type gives wrong numbers, a wrong
shape a crash. So the package carries the same description that a graph has, less the
operators, and the native half checks by it.
"""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from .._tracing import exporting
from ..errors import LoadError
from ._lower import graph_of
from ._module import _quiet, reason_of
from ._program import Names, Served, Unflatten, describe

_KEY = "pyasyncml"


def compile_program(program: ExportedProgram, names: Names, path: str) -> None:
    """Writes a package. Takes a C++ compiler and seconds. Raises `LoadError`."""
    for out in program.graph_signature.output_specs:
        if out.kind is not OutputKind.USER_OUTPUT:
            to_input = out.kind is OutputKind.USER_INPUT_MUTATION
            raise LoadError(
                f"compile=True: the program writes to its "
                f"{'input' if to_input else 'state'} ({out.target}), in the mode that "
                "the module is in; compiled ones can't: leave compile= out"
            )
    found = describe(program, "forward", names)
    name, home, *_, symbols, leaves, arguments, _, tree, outputs, _ = found.description
    for title, dtype, _ in outputs:
        if dtype is None:
            raise LoadError(
                f"compile=True: every output must be a tensor, and {title or 'it'} is "
                "none: leave compile= out"
            )
    for leaf in leaves:
        if leaf[0] == "number":
            raise LoadError(f"compile=True: input '{leaf[1]}' is a number that varies")
    spec = None
    if found.finish is not None:
        try:
            spec = pytree.treespec_dumps(found.finish.spec)
        except (NotImplementedError, ValueError, TypeError) as error:
            raise LoadError(
                f"compile=True: the outputs' type can't be written: {error}"
            ) from error
    about = {
        "name": name,
        "device": home,
        "symbols": symbols,
        "leaves": leaves,
        "arguments": arguments,
        "tree": tree,
        "outputs": outputs,
        "shapes": found.shapes,
        "finish": spec,
    }
    package = f"{path}.pt2"  # the name that the compiler insists on
    configs = {
        # Threads are told at the run, not burnt in.
        "cpp.dynamic_threads": True,
        "aot_inductor.metadata": {_KEY: json.dumps(about)},
    }
    with exporting, _quiet():
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=package, inductor_configs=configs
            )
        except Exception as error:
            raise LoadError(f"compile=True: {reason_of(error)}") from error
    os.replace(package, path)


def read_compiled(path: str, runners: int) -> Served:
    """A package's graph: its description, and one node that runs the compiled code.

    Runs none of the code in it. Raises `LoadError`.
    """
    metadata = _metadata(path)
    if _KEY not in metadata:
        raise LoadError(
            f"{path}: doesn't say what it takes, and compiled code doesn't check: "
            "write it with pyasyncml.export.torch(…, compile=True)"
        )
    try:
        about = json.loads(metadata[_KEY])
        leaves = [list(leaf) for leaf in about["leaves"]]
        operands = []
        for i, leaf in enumerate(leaves):
            leaf[2] = i if leaf[0] == "tensor" else -1
            if leaf[0] == "tensor":
                operands.append(("slot", i))
        first = len(leaves)
        results = list(range(first, first + len(about["outputs"])))
        node: Any = ("compiled", "", "", operands, results, "the compiled program", [])
        body: Any = ([], [node], [("slot", slot) for slot in results])
        description: tuple[Any, ...] = (
            str(about["name"]),
            str(about["device"]),
            False,
            [],  # other devices
            first + len(results),
            [],
            about["symbols"],
            leaves,
            about["arguments"],
            [body],
            about["tree"],
            about["outputs"],
            (path, runners),
        )
        finish = about["finish"]
        shapes = {key: tuple(shape) for key, shape in about["shapes"].items()}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LoadError(f"{path}: says in no known way what it takes") from error
    unflatten = Unflatten(pytree.treespec_loads(finish)) if finish else None
    structure = str(unflatten.spec) if unflatten is not None else ""
    return Served(graph_of(description, ()), unflatten, structure, shapes)


def _metadata(path: str) -> dict[str, Any]:
    """What the compiler and who called it said of the package."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith("_metadata.json"):
                    read = json.loads(archive.read(member))
                    if isinstance(read, dict):
                        return read
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LoadError(
            f"{path}: is a damaged or truncated archive ({error})"
        ) from error
    raise LoadError(f"{path}: has no description of what it was compiled for")
