"""From a JAX function to a bundle: one StableHLO program for each batch size, and a
manifest that says what it takes and gives (csrc/backends/xla/bundle.c reads it)."""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from ..errors import LoadError
from ._write import write_with_checksum

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
    if not callable(fn):
        raise TypeError(f"fn: expected a callable, got {type(fn).__name__}")
    sizes = _check_sizes(batch_sizes)
    if sizes and state is not None:
        raise ValueError(
            "batch_sizes: a function with state has fixed shapes (padding would "
            "change the state): batch_sizes=None"
        )
    function = _Function(fn, inputs, weights, state, sizes)
    each: list[int | None] = [*sizes] or [None]
    programs = [function.lower(rows, platform) for rows in each]
    manifest = function.manifest(entry, programs)
    members: list[tuple[str, bytes]] = [
        ("manifest", manifest.encode()),
        ("held", function.held_names().encode()),
    ]
    members += [
        (f"programs/{i}", bytes(program.mlir_module_serialized))
        for i, program in enumerate(programs)
    ]
    members += function.held_arrays()
    write_with_checksum(path, lambda made: _write_archive(made, members))


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


class _Function:
    """A function, checked, with what it is called with. `sizes`: of the batch, or none.

    Structures are JAX's pytrees; leaves are arrays where they are held, and shapes and
    dtypes elsewhere.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: tuple[Any, ...],
        weights: Any,
        state: Any,
        sizes: list[int],
    ) -> None:
        self.jax = _import_jax()
        self.fn = fn
        self.sizes = sizes
        self.inputs = self._leaves_as("inputs", inputs, self._spec)
        self.weights = self._leaves_as("weights", weights, self.jax.numpy.asarray)
        self.state = self._leaves_as("state", state, self.jax.numpy.asarray)
        #: What comes before the inputs.
        self.held = tuple(
            tree for tree in (self.weights, self.state) if tree is not None
        )
        if sizes:
            self._check_batch()
        donated = (len(self.held) - 1,) if state is not None else ()
        self.jitted = self.jax.jit(fn, donate_argnums=donated)
        rows = (sizes[0], sizes[-1] + 1) if sizes else (None,)
        results = [self._shapes(count) for count in rows]
        if state is not None:
            self._check_state(results[0])
            results[0] = results[0][1]
        self.outputs = results[0]
        #: One for each leaf of the outputs.
        self.output_shapes = [
            tuple(leaf.shape) for leaf in self.jax.tree.leaves(self.outputs)
        ]
        if sizes:
            self._find_batch(self.jax.tree.leaves(results[1]))

    def lower(self, rows: int | None, platform: str | None) -> Any:
        """A program for so many rows (None: as the inputs are)."""
        platforms = None if platform is None else (platform,)
        try:
            program = self.jax.export.export(self.jitted, platforms=platforms)(
                *self.held, *self._with_rows(rows)
            )
        except Exception as error:
            raise LoadError(f"fn can't be exported by JAX: {error}") from error
        if program.nr_devices != 1:
            raise LoadError(
                f"fn runs on {program.nr_devices} devices at once; one was expected "
                "(load(device=[...]) runs a copy on each)"
            )
        return program

    def held_arrays(self) -> Iterator[tuple[str, bytes]]:
        """Members for the weights and the state."""
        import numpy

        for folder, tree in (("weights", self.weights), ("state", self.state)):
            for i, leaf in enumerate(self.jax.tree.leaves(tree)):
                yield f"{folder}/{i}", numpy.ascontiguousarray(leaf).tobytes()

    def held_names(self) -> str:
        """The weights and the state array by array, as JSON: each its place in the
        structure, its dtype and its shape. Whoever gives arrays from one bundle to
        another goes by these."""
        described = {
            folder: [
                [_place(path), str(leaf.dtype), list(leaf.shape)]
                for path, leaf in self.jax.tree_util.tree_leaves_with_path(tree)
            ]
            for folder, tree in (("weights", self.weights), ("state", self.state))
        }
        return json.dumps(described)

    def manifest(self, entry: str, programs: list[Any]) -> str:
        first = programs[0]
        kept = set(first.module_kept_var_idx)
        if any(set(program.module_kept_var_idx) != kept for program in programs):
            raise LoadError("fn uses other inputs for other batch sizes")
        leaves = self.jax.tree.leaves
        structure = self.jax.tree.structure
        # In the order of the program's arguments.
        position = iter(range(len(first.in_avals)))

        def arrays(tree: Any, batch: bool = False) -> Iterator[str]:
            for leaf in leaves(tree):
                shape = tuple(leaf.shape)
                shape = (_BATCH, *shape[1:]) if batch and shape else shape
                yield _array(leaf.dtype, shape, next(position) in kept)

        lines = [
            "pyasyncml-xla 1",
            f"entry {quote(entry, safe='')}",
            f"platform {first.platforms[0]}",
            " ".join(map(str, ("buckets", len(self.sizes), *self.sizes))),
            f"weights {len(leaves(self.weights))}",
            *arrays(self.weights),
            "state",
            *_tree(structure(self.state), arrays(self.state), "state"),
            f"inputs {len(self.inputs)}",
        ]
        for name, tree in zip(self._names(), self.inputs, strict=True):
            lines.append(f"input {quote(name, safe='')}")
            described = arrays(tree, batch=bool(self.sizes))
            lines += _tree(structure(tree), described, f"input {name!r}")
        outputs = (
            _array(leaf.dtype, shape)
            for leaf, shape in zip(
                leaves(self.outputs), self.output_shapes, strict=True
            )
        )
        lines += ["outputs", *_tree(structure(self.outputs), outputs, "outputs")]
        return "\n".join(lines) + "\n"

    # --- checks ---

    def _leaves_as(self, what: str, tree: Any, convert: Callable[[Any], Any]) -> Any:
        def converted(path: Any, leaf: Any) -> Any:
            try:
                array = convert(leaf)
                dtype = str(array.dtype)
            except (TypeError, ValueError) as error:
                where = what + self.jax.tree_util.keystr(path)
                raise TypeError(
                    f"{where}: expected an array, got {type(leaf).__name__}"
                ) from error
            if dtype not in _DTYPES:
                raise TypeError(
                    f"{what}{self.jax.tree_util.keystr(path)}: {dtype} can't be "
                    f"served; there is {', '.join(sorted(_DTYPES))}"
                )
            return array

        return self.jax.tree_util.tree_map_with_path(converted, tree)

    def _spec(self, leaf: Any) -> Any:
        if isinstance(leaf, self.jax.ShapeDtypeStruct):
            return leaf
        array = leaf if hasattr(leaf, "dtype") else self.jax.numpy.asarray(leaf)
        dtype = self.jax.dtypes.canonicalize_dtype(array.dtype)
        return self.jax.ShapeDtypeStruct(tuple(array.shape), dtype)

    def _check_batch(self) -> None:
        rows = {
            leaf.shape[0]: self.jax.tree_util.keystr(path)
            for path, leaf in self.jax.tree_util.tree_leaves_with_path(self.inputs)
            if leaf.shape
        }
        if not rows:
            raise ValueError(
                "batch_sizes: no input has an axis for the batch; "
                "batch_sizes=None exports fixed shapes"
            )
        if len(rows) > 1:
            found = ", ".join(f"inputs{at} has {size}" for size, at in rows.items())
            raise ValueError(
                "inputs: axis 0 of each is the batch, and should be as long in all: "
                f"{found}; batch_sizes=None exports fixed shapes, and what isn't "
                "batched may be among the weights"
            )

    def _with_rows(self, rows: int | None) -> Any:
        def resized(leaf: Any) -> Any:
            if rows is None or not leaf.shape:
                return leaf
            return self.jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

        return self.jax.tree.map(resized, self.inputs)

    def _shapes(self, rows: int | None) -> Any:
        """What the function returns, as shapes and dtypes."""
        try:
            return self.jax.eval_shape(self.fn, *self.held, *self._with_rows(rows))
        except Exception as error:
            raise LoadError(f"fn can't be traced by JAX: {error}") from error

    def _check_state(self, results: Any) -> None:
        """The new state must be like the old one, or there would be no next run."""
        if not isinstance(results, tuple) or len(results) != 2:
            raise ValueError(
                "fn: with a state it returns (new state, outputs), got "
                f"{self.jax.tree.structure(results)}"
            )
        old, new = (
            self.jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)
            for tree in (self.state, results[0])
        )
        if old != new:
            raise ValueError(
                "fn: the new state must have the structure, shapes and dtypes of the "
                f"old one; {old} became {new}"
            )

    def _find_batch(self, others: list[Any]) -> None:
        """Which axes follow the batch: two numbers of rows tell."""
        rows = (self.sizes[0], self.sizes[-1] + 1)
        for i, other in enumerate(others):
            shape = self.output_shapes[i]
            if not shape or (shape[0], other.shape[0]) != rows:
                raise ValueError(
                    "fn: with batch_sizes, axis 0 of every output is the batch; output "
                    f"{i} has shape {shape} for {rows[0]} rows and "
                    f"{tuple(other.shape)} for {rows[1]}: batch_sizes=None exports "
                    "fixed shapes"
                )
            if shape[1:] != tuple(other.shape[1:]):
                raise ValueError(
                    f"fn: output {i} has other sizes than its batch for other numbers "
                    f"of rows: {shape} and {tuple(other.shape)}"
                )
            self.output_shapes[i] = (_BATCH, *shape[1:])

    def _names(self) -> list[str]:
        """The inputs' names as `fn` has them, where it tells."""
        try:
            parameters = list(inspect.signature(self.fn).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        positional = [
            parameter.name
            for parameter in parameters
            if parameter.kind
            in (
                inspect.Parameter.POSITIONAL_ONLY,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
            )
        ][len(self.held) :]
        more = range(len(positional), len(self.inputs))
        return positional[: len(self.inputs)] + [f"input{i}" for i in more]


def _place(path: Any) -> str:
    """Where a leaf is: "layers/0/w", "" for a structure that is one itself."""
    parts = []
    for key in path:
        for attribute in ("key", "idx", "name"):  # of JAX's kinds of keys
            if hasattr(key, attribute):
                key = getattr(key, attribute)
                break
        parts.append(str(key).replace("%", "%25").replace("/", "%2F"))
    return "/".join(parts)


# --- the manifest's lines ---


def _array(dtype: Any, shape: Shape, kept: bool = True) -> str:
    return " ".join(map(str, ("array", dtype, int(kept), len(shape), *shape)))


def _tree(treedef: Any, arrays: Iterator[str], what: str) -> Iterator[str]:
    """A structure's lines; takes one of `arrays` for each leaf."""
    node = treedef.node_data()
    if node is None:
        yield next(arrays) if treedef.num_leaves else "none"
        return
    kind, data = node
    children = treedef.children()
    if kind is type(None):
        yield "none"
    elif kind is dict:
        yield f"dict {len(children)}"
        for key, child in zip(data, children, strict=True):
            if not isinstance(key, str):
                raise TypeError(f"{what}: the keys of a dict must be str, got {key!r}")
            yield f"key {quote(key, safe='')}"
            yield from _tree(child, arrays, what)
    else:
        yield f"{'list' if kind is list else 'tuple'} {len(children)}"
        for child in children:
            yield from _tree(child, arrays, what)


# --- the file ---


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
