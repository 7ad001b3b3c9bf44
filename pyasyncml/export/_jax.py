"""From a JAX function to a bundle: one StableHLO program for each batch size, and a
manifest that says what it takes and gives (csrc/backends/xla/bundle.c reads it)."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from ..errors import LoadError
from ._write import write_atomically

_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "float16", "float32", "float64", "bfloat16", "complex64"),
    "complex128",
}
_BATCH = -1
#: XLA uses host memory where it lies if it is aligned to this.
_ALIGNMENT = 64

Shape = tuple[int, ...]


def export_function(
    fn: Callable[..., Any],
    inputs: tuple[Any, ...],
    path: str,
    batch_sizes: Sequence[int] | None,
    weights: Any,
    state: Any,
    entry: str,
    platform: str | None,
) -> None:
    """See `pyasyncml.export.jax`."""
    jax = _import_jax()
    if not callable(fn):
        raise TypeError(f"fn: expected a callable, got {type(fn).__name__}")
    if batch_sizes is not None and state is not None:
        raise ValueError(
            "batch_sizes: a function with state has fixed shapes (padding would "
            "change the state): batch_sizes=None"
        )
    sizes = _check_sizes(batch_sizes)
    held = tuple(tree for tree in (weights, state) if tree is not None)
    held = jax.tree.map(jax.numpy.asarray, held)
    inputs = jax.tree.map(_spec_of, inputs)
    for what, tree in (("inputs", inputs), ("weights", weights), ("state", state)):
        _check_dtypes(jax, what, tree)
    if sizes:
        _check_batch(jax, inputs)
    donated = (len(held) - 1,) if state is not None else ()
    jitted = jax.jit(fn, donate_argnums=donated)
    programs = [
        _lower(jax, jitted, held, _with_rows(jax, inputs, rows), platform)
        for rows in sizes or [None]
    ]
    if state is not None:
        _check_state(jax, held[-1], programs[0])
    # A size that is none of the batch sizes tells which axes follow the batch.
    other = None
    if sizes:
        other = jax.eval_shape(jitted, *held, *_with_rows(jax, inputs, sizes[-1] + 1))
    manifest = _manifest(
        jax, fn, inputs, sizes, weights, state, entry, programs, other
    )
    members: list[tuple[str, bytes]] = [("manifest", manifest.encode())]
    members += [
        (f"programs/{i}", bytes(program.mlir_module_serialized))
        for i, program in enumerate(programs)
    ]
    for folder, tree in (("weights", weights), ("state", state)):
        for i, leaf in enumerate(jax.tree.leaves(tree)):
            members.append((f"{folder}/{i}", _bytes_of(jax, leaf)))
    write_atomically(path, lambda made: _write_archive(made, members))


def _import_jax() -> Any:
    try:
        import jax
        import jax.export
    except ImportError as error:
        raise LoadError(
            f"export.jax needs JAX, which doesn't import ({error}): "
            "pip install 'pyasyncml[xla]'"
        ) from error
    return jax


def _check_sizes(batch_sizes: Sequence[int] | None) -> list[int]:
    if batch_sizes is None:
        return []
    sizes = list(batch_sizes)
    if not sizes or any(
        not isinstance(size, int) or isinstance(size, bool) or size < 1
        for size in sizes
    ):
        raise ValueError(f"batch_sizes: expected ints from 1 on, got {batch_sizes!r}")
    return sorted(set(sizes))


def _spec_of(leaf: Any) -> Any:
    """Its shape and dtype, as JAX takes it."""
    import jax

    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not hasattr(leaf, "dtype"):
        leaf = jax.numpy.asarray(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return jax.ShapeDtypeStruct(tuple(leaf.shape), dtype)


def _check_dtypes(jax: Any, what: str, tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = str(jax.numpy.result_type(leaf))
        if dtype not in _DTYPES:
            raise TypeError(
                f"{what}{jax.tree_util.keystr(path)}: {dtype} can't be served; "
                f"there is {', '.join(sorted(_DTYPES))}"
            )


def _check_batch(jax: Any, inputs: Any) -> None:
    rows = {
        leaf.shape[0]: jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(inputs)
        if leaf.shape
    }
    if not rows:
        raise ValueError(
            "batch_sizes: no input has an axis for the batch; "
            "batch_sizes=None exports fixed shapes"
        )
    if len(rows) > 1:
        raise ValueError(
            "inputs: axis 0 of each is the batch, and should be as long in all: "
            + ", ".join(f"inputs{where} has {size}" for size, where in rows.items())
            + "; batch_sizes=None exports fixed shapes, and what isn't batched may be "
            "among the weights"
        )


def _with_rows(jax: Any, inputs: Any, rows: int | None) -> Any:
    if rows is None:
        return inputs
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)
            if leaf.shape
            else leaf
        ),
        inputs,
    )


def _lower(jax: Any, jitted: Any, held: Any, inputs: Any, platform: str | None) -> Any:
    try:
        program = jax.export.export(
            jitted, platforms=None if platform is None else (platform,)
        )(*held, *inputs)
    except Exception as error:
        raise LoadError(f"fn can't be exported by JAX: {error}") from error
    if program.nr_devices != 1:
        raise LoadError(
            f"fn runs on {program.nr_devices} devices at once; one was expected "
            "(load(device=[...]) runs a copy on each)"
        )
    return program


def _check_state(jax: Any, state: Any, program: Any) -> None:
    """The new state must be like the old one, or there would be no next run."""
    treedef = program.out_tree
    children = treedef.children()
    if treedef.node_data() is None or len(children) != 2:
        raise ValueError(
            f"fn: with a state it returns (new state, outputs), got {treedef}"
        )
    leaves = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(state)]
    new = [
        (tuple(aval.shape), str(aval.dtype))
        for aval in program.out_avals[: children[0].num_leaves]
    ]
    if children[0] != jax.tree.structure(state) or leaves != new:
        raise ValueError(
            "fn: the new state must have the structure, shapes and dtypes of the old "
            f"one; {jax.tree.structure(state)} of {leaves} became {children[0]} of {new}"
        )


# --- the manifest ---


def _array(dtype: Any, shape: Shape, kept: bool = True) -> str:
    return " ".join(map(str, ("array", dtype, int(kept), len(shape), *shape)))


def _tree(treedef: Any, arrays: Iterator[str], what: str) -> Iterator[str]:
    """A structure's lines; takes a line of `arrays` for each leaf."""
    node = treedef.node_data()
    if node is None:
        yield next(arrays) if treedef.num_leaves else "none"
        return
    kind, data = node
    children = treedef.children()
    if kind is type(None):
        yield "none"
        return
    if kind is dict:
        yield f"dict {len(children)}"
        for key, child in zip(data, children, strict=True):
            if not isinstance(key, str):
                raise TypeError(
                    f"{what}: the keys of a dict must be str, got {key!r}"
                )
            yield f"key {quote(key, safe='')}"
            yield from _tree(child, arrays, what)
        return
    yield f"{'list' if kind is list else 'tuple'} {len(children)}"
    for child in children:
        yield from _tree(child, arrays, what)


def _names(fn: Callable[..., Any], skipped: int, count: int) -> list[str]:
    """The inputs' names as `fn` has them, where it tells."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())[skipped:]
    except (TypeError, ValueError):
        parameters = []
    names = []
    for i in range(count):
        named = i < len(parameters) and parameters[i].kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
        names.append(parameters[i].name if named else f"input{i}")
    return names


def _output_shapes(
    program: Any, n_state: int, sizes: list[int], other: Any, jax: Any
) -> list[Shape]:
    shapes = [tuple(aval.shape) for aval in program.out_avals[n_state:]]
    if not sizes:
        return shapes
    for i, leaf in enumerate(jax.tree.leaves(other)):
        shape = shapes[i]
        batch = (sizes[0], sizes[-1] + 1)
        if not shape or (shape[0], leaf.shape[0]) != batch or shape[1:] != leaf.shape[1:]:
            raise ValueError(
                f"fn: with batch_sizes, axis 0 of every output is the batch; output {i} "
                f"has shape {shape} for {batch[0]} rows and {tuple(leaf.shape)} for "
                f"{batch[1]}: batch_sizes=None exports fixed shapes"
            )
        shapes[i] = (_BATCH, *shape[1:])
    return shapes


def _manifest(
    jax: Any,
    fn: Callable[..., Any],
    inputs: tuple[Any, ...],
    sizes: list[int],
    weights: Any,
    state: Any,
    entry: str,
    programs: list[Any],
    other: Any,
) -> str:
    first = programs[0]
    # Which arguments are kept is the same in all: shapes don't decide it.
    kept = set(first.module_kept_var_idx)
    position = iter(range(len(first.in_avals)))

    def arrays(tree: Any, batch: bool) -> Iterator[str]:
        for leaf in jax.tree.leaves(tree):
            shape = tuple(leaf.shape)
            shape = (_BATCH, *shape[1:]) if batch and shape else shape
            yield _array(leaf.dtype, shape, next(position) in kept)

    for program in programs[1:]:
        if set(program.module_kept_var_idx) != kept:
            raise LoadError("fn uses other inputs for other batch sizes")
    held = [
        jax.tree.map(jax.numpy.asarray, tree)
        for tree in (weights, state)
    ]
    n_state = len(jax.tree.leaves(state))
    lines = [
        "pyasyncml-xla 1",
        f"entry {quote(entry, safe='')}",
        f"platform {first.platforms[0]}",
        " ".join(map(str, ("buckets", len(sizes), *sizes))),
        f"weights {len(jax.tree.leaves(weights))}",
        *arrays(held[0], False),
        "state",
        *_tree(jax.tree.structure(state), arrays(held[1], False), "state"),
        f"inputs {len(inputs)}",
    ]
    names = _names(fn, (weights is not None) + (state is not None), len(inputs))
    for name, tree in zip(names, inputs, strict=True):
        lines.append(f"input {quote(name, safe='')}")
        lines += _tree(
            jax.tree.structure(tree), arrays(tree, bool(sizes)), f"input {name!r}"
        )
    out_tree = first.out_tree
    if state is not None:
        out_tree = out_tree.children()[1]
    shapes = _output_shapes(first, n_state, sizes, other, jax)
    outputs = [
        _array(aval.dtype, shape)
        for aval, shape in zip(first.out_avals[n_state:], shapes, strict=True)
    ]
    lines.append("outputs")
    lines += _tree(out_tree, iter(outputs), "outputs")
    return "\n".join(lines) + "\n"


# --- the file ---


def _bytes_of(jax: Any, leaf: Any) -> bytes:
    import numpy

    return numpy.ascontiguousarray(jax.numpy.asarray(leaf)).tobytes()


def _write_archive(made: str, members: list[tuple[str, bytes]]) -> None:
    """Stored, not compressed, and each aligned."""
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        assert archive.fp is not None
        for name, content in members:
            # No time of the day: the same function gives the same file.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            begin = archive.fp.tell() + 30 + len(name) + 4
            padding = -begin % _ALIGNMENT
            # An extra field of a kind that nobody reads.
            info.extra = b"\xa9\xa9" + padding.to_bytes(2, "little") + bytes(padding)
            archive.writestr(info, content)
