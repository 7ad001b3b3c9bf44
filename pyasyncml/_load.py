"""From a file or a live module to a `Model`."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any

from . import _files
from ._call import call
from .backends import Devices, load_backend, parse_devices, parse_options
from .backends.tensorflow import SharedProgram
from .backends.xla import Bundle
from .batching import Batching
from .errors import LoadError
from .model import Model, Queue, make_model

# The profiling executors specialise in the first two runs; the third is as all others.
_WARMUP_RUNS = 3


class Loading:
    """What `load` returns: await it for the model, or enter it with ``async with``."""

    def __init__(
        self, open_model: Callable[[], Any], load_again: Callable[[Any], Loading]
    ) -> None:
        self._open_model = open_model
        self._load_again = load_again
        self._model: Model | None = None

    def __getattr__(self, name: str) -> Any:
        """Only where there is none: who asks for a model's has forgotten to await."""
        if hasattr(Model, name) and not name.startswith("__"):
            raise AttributeError(
                f"{name!r} is the model's, and load(...) gives that only once it is "
                "awaited: await it first (model = await load(...)), or enter it with "
                "async with (async with load(...) as model)"
            )
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}"
        )

    def __await__(self) -> Generator[Any, None, Model]:
        return self._open().__await__()

    async def _open(self) -> Model:
        model: Model = await self._open_model()
        model._load_again = self._load_again
        return model

    async def __aenter__(self) -> Model:
        self._model = await self
        return self._model

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._model is not None
        await self._model.close(drain=exc_type is None)


def load(
    source: Any,
    *,
    inputs: Any = None,
    dynamic: Any = None,
    device: str | Sequence[str] = "cpu",
    instances: int = 1,
    threads: int = 1,
    entry: str | None = None,
    batching: Batching | None = None,
    queue: Queue | None = None,
    inline_below: float = 0.0,
    warmup: bool = True,
    backend: str | None = None,
    options: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    name: str | None = None,
) -> Loading:
    """Load a model: ``await load(...)``, or ``async with load(...) as model``.

    `source`: a file, whose format is found from its content (TorchScript archives,
    `.pt2` programs of torch.export, ONNX models, SavedModel folders, bundles of JAX
    functions by `export.jax`), or a live `torch.nn.Module` or other callable. Reading,
    building and warming up happen on a worker, while the loop goes on; the first use of
    a framework in a process imports its library, which may hold the GIL for some
    milliseconds.

    A live module with example `inputs` is exported, in the mode (train or eval) it is
    in, and runs without Python from then on, over its own weights: what is written to
    them in place is served (until a `Trainer` drives the module: from then on what
    `Model.update_weights` last took from it). Exporting is Python: it takes seconds
    and holds the GIL in slices, and but for a trainer nobody may use the module
    meanwhile. Without inputs, or with ``backend="python"``, a module runs in Python on
    the workers, as other callables do, and holds the GIL as Python code must.

    `inputs`: example inputs, one or a tuple; each instance runs them before the model
    is ready, so that the first request isn't slow (`warmup=False`: not).
    `dynamic`: which sizes of an exported module's inputs may vary, besides the batch
    (axis 0, where the example inputs agree about it): ``{"ids": {1: "length"}}``, where
    axes of one name are equal, or torch.export's ``dynamic_shapes``.
    `device`: "cpu", "cuda:0", … or several of them, which share one queue; "xla:0", …
    for bundles; `devices()` lists them. What runs in Python runs where its parameters
    are. `instances`: workers per device, each with its own stream of runs. `threads`:
    intra-op threads of one instance.
    `entry`: the function to serve, where the program has several: a method's name, or
    that of a submodule's method ("encoder.forward").
    `batching`: independent requests share runs, see `Batching`; None: they never do.
    `queue`: the bound, see `Queue`. `inline_below`: seconds; a request that finds the
    model idle, and whose kind has been taking less than this lately, runs at once in
    the caller, whose loop it blocks for that long; 0, the default: none does.
    `backend`: "torch", "onnx", "tensorflow", "xla" or "python", where the content
    doesn't tell. `options`: the backend's own, by name. Of ONNX models: "providers", a
    sequence of execution providers' names or (name, {option: value}) pairs, and the
    session options "graph_optimization_level" ("disable", "basic", "extended", "all"),
    "enable_mem_pattern", "enable_cpu_mem_arena" (bools), "optimized_model_filepath" (a
    path) and "config" (a mapping of entries, str to str), as onnxruntime has them; and
    "outputs", the names of those to compute and hand out, in that order. The other
    backends have none.
    `sha256`: the file's checksum in hex (of a folder, that of the list that sha256sum
    makes of its files in order); without it, a file of the same name with ".sha256"
    added is looked for. `name`: what errors and stats call it.

    A model file is code: load only what you would run.

    Raises `TypeError` and `ValueError` for wrong arguments at the call (for `options`,
    where a file's content must tell the backend first, in the awaiting task), and
    `LoadError` in the awaiting task for everything about the file, the framework or the
    device.
    """
    for what, value in (("instances", instances), ("threads", threads)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{what}: expected an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{what}: expected 1 or more, got {value}")
    if queue is not None and not isinstance(queue, Queue):
        raise TypeError(f"queue: expected a Queue, got {type(queue).__name__}")
    if not isinstance(inline_below, (int, float)) or not 0 <= inline_below <= 1:
        raise ValueError(
            f"inline_below: expected seconds, 0 to 1, got {inline_below!r}"
        )
    if batching is not None and not isinstance(batching, Batching):
        raise TypeError(f"batching: expected a Batching, got {type(batching).__name__}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options: expected a mapping, got {type(options).__name__}")
    devices = parse_devices(device)
    example = (
        inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
    )
    common = {
        "devices": devices,
        "instances": instances,
        "threads": threads,
        "queue": queue,
        "batching": batching,
        "inline_below": inline_below,
        "warmup_runs": _WARMUP_RUNS if warmup else 0,
    }
    load_again = functools.partial(
        load,
        inputs=inputs,
        dynamic=dynamic,
        device=device,
        instances=instances,
        threads=threads,
        entry=entry,
        batching=batching,
        queue=queue,
        inline_below=inline_below,
        warmup=warmup,
        backend=backend,
        options=options,
    )
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not isinstance(path, str):
            path = os.fsdecode(path)
        title = name or os.path.basename(path.rstrip("/")) or path
        return Loading(
            lambda: _open_file(
                path, backend, sha256, entry, example, title, common, options
            ),
            functools.partial(load_again, name=title),
        )
    if isinstance(source, SharedProgram):
        path = source.path
        title = name or os.path.basename(path.rstrip("/")) or path
        return Loading(
            lambda: _open_file(
                path,
                "tensorflow",
                sha256,
                entry,
                example,
                title,
                common,
                options,
                source._program,
            ),
            functools.partial(load_again, name=title),
        )
    if isinstance(source, Bundle):
        title = name or os.path.basename(source.path)
        return Loading(
            lambda: _open_bundle(source, entry, example, title, common),
            functools.partial(load_again, name=title),
        )
    if callable(source):
        title = name or str(getattr(source, "__name__", type(source).__name__))
        load_again = functools.partial(load_again, name=title)
        if sha256 is not None:
            raise TypeError("sha256: only a file has a checksum")
        if backend not in (None, "python", "torch"):
            raise ValueError(
                f"backend: a live module runs on 'torch' or 'python', not {backend!r}"
            )
        if options:
            raise ValueError("options: a live module or callable has none")
        function = _live_entry(source, entry)
        if _is_graph(source, inputs, backend):
            return Loading(
                lambda: _open_module(source, entry, example, dynamic, title, common),
                load_again,
            )
        if dynamic is not None:
            raise ValueError(
                "dynamic: takes effect where a module is exported: give example inputs="
            )
        if inline_below:
            raise ValueError(
                "inline_below: a live module or callable runs on a worker only; where "
                "the loop may wait for it, call it"
            )
        if batching is not None:
            raise ValueError(
                "batching: what runs in Python runs one request at a time; a torch "
                "module loaded with example inputs= is exported, and takes batches"
            )
        return Loading(
            lambda: _open_live(source, function, devices, example, title, common),
            load_again,
        )
    raise TypeError(
        "source: expected a path, a torch.nn.Module or a callable, "
        f"got {type(source).__name__}"
    )


def _live_entry(source: Any, entry: str | None) -> Callable[..., Any]:
    function = source if entry is None else getattr(source, entry, None)
    if not callable(function):
        raise ValueError(f"entry: {type(source).__name__} has no method {entry!r}")
    return function  # type: ignore[no-any-return]


async def _open_file(
    path: str,
    backend: str | None,
    sha256: str | None,
    entry: str | None,
    example: tuple[Any, ...],
    name: str,
    common: dict[str, Any],
    options: Mapping[str, Any] | None,
    program: Any = None,
) -> Model:
    found = await call(_files.identify, path, backend, sha256)
    framework = found.partition(".")[0]
    parsed = parse_options(framework, options, common["devices"])
    capsule = await call(load_backend, framework)
    if found == "torch.export":
        arguments: tuple[Any, ...] = (path, entry)
        return await _open_served("serve_file", arguments, example, name, common)
    if found == "torch.compiled":
        runners = common["instances"] + (1 if common["inline_below"] else 0)
        arguments = (path, entry, runners)
        return await _open_served("serve_package", arguments, example, name, common)
    if found == "xla":
        return await _open_bundle(
            await call(Bundle, path), entry, example, name, common
        )
    model = make_model(
        Model,
        found,
        capsule,
        program if program is not None else parsed,
        name=name,
        path=path,
        entry=entry,
        **common,
    )
    if found == "tensorflow":
        model._folder = await call(os.path.realpath, path)
    return await _started(model, example)


async def _open_bundle(
    bundle: Bundle,
    entry: str | None,
    example: tuple[Any, ...],
    name: str,
    common: dict[str, Any],
) -> Model:
    capsule = await call(load_backend, "xla")
    model = make_model(
        Model,
        "xla",
        capsule,
        bundle._source,
        name=name,
        path=bundle.path,
        entry=entry,
        **common,
    )
    model._bundle = bundle
    return await _started(model, example)


def _is_graph(source: Any, inputs: Any, backend: str | None) -> bool:
    """Whether a live object is exported, rather than run in Python."""
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(source, torch.nn.Module)
    if backend == "torch" and not is_module:
        raise ValueError("backend: 'torch' exports a torch.nn.Module")
    if backend == "torch" and inputs is None:
        raise ValueError("inputs: a module is exported with example inputs")
    return is_module and backend != "python" and inputs is not None


async def _open_module(
    source: Any,
    entry: str | None,
    example: tuple[Any, ...],
    dynamic: Any,
    name: str,
    common: dict[str, Any],
) -> Model:
    from ._weights import serve_live

    arguments = (source, entry, example, dynamic, common["batching"])
    model = await _open_served("serve_module", arguments, example, name, common)
    try:
        await serve_live(model)
    except BaseException:
        model._abort()
        raise
    return model


def _serve(function: str, arguments: tuple[Any, ...]) -> Any:
    """Imports what exports programs, which takes a moment, beside the loop."""
    from . import _load_graph

    return getattr(_load_graph, function)(*arguments)


async def _open_served(
    function: str,
    arguments: tuple[Any, ...],
    example: tuple[Any, ...],
    name: str,
    common: dict[str, Any],
) -> Model:
    """Makes the program's graph on a worker, in Python: the loop goes on in slices."""
    served = await call(_serve, function, arguments)
    model: Model = served.model(name, common)
    return await _started(model, example)


async def _open_live(
    source: Any,
    function: Callable[..., Any],
    devices: Devices,
    example: tuple[Any, ...],
    name: str,
    common: dict[str, Any],
) -> Model:
    from .backends.python import live_callable

    for device, _ in devices:
        if device != "cpu":
            raise LoadError(_why_not_on(device, source))
    capsule = await call(load_backend, "python")
    model = make_model(
        Model, "python", capsule, live_callable(source, function), name=name, **common
    )
    return await _started(model, example)


def _why_not_on(device: str, source: Any) -> str:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        why = f"device: a callable runs in Python, not on {device!r}"
        if device.startswith("xla"):
            return f"{why}; export.jax writes a JAX function as a bundle that does"
        return f"{why}: it puts its tensors where it wants them; leave device= out"
    why = "device: what runs in Python runs where its parameters are"
    if device.startswith("xla"):
        return (
            f"{why}; XLA devices run JAX functions, as bundles that export.jax writes"
        )
    return (
        f"{why}: give example inputs= (and no backend='python') to have the module "
        f"exported and served on {device!r}, or move it there (module.to(device)) and "
        "leave device= out"
    )


def _level_of_caller() -> int:
    """The `stacklevel` at which `warnings.warn` in the calling function points at who
    called into this package: the line that awaits, where a task does."""
    package = os.path.dirname(__file__) + os.sep
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
        level += 1
    return level


async def _started(model: Model, example: tuple[Any, ...]) -> Model:
    try:
        await model._start(*example)
        if len(model.stats().busy) > 1 and model.signature.stateful:
            warnings.warn(
                f"model {model.name!r} keeps state of its own from run to run: "
                "with several instances the requests of a stream land on any of them",
                RuntimeWarning,
                stacklevel=_level_of_caller(),
            )
        return model
    except BaseException:
        model._abort()
        raise
