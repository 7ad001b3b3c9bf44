"""From a traced graph (`torch.fx`) to the description that the native half reads.

A description is a tuple of plain tuples and lists (csrc/backends/torch/graph_python.cpp
reads it): name, device, mutable, other devices, number of slots, constants, symbols,
leaves, arguments, bodies, output tree, outputs, compiled package. Nodes are never
written to a file: the schemas of operators change from one torch to the next.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..errors import LoadError
from ._replicas import barrier, shard

#: Namespaces whose operators are native: none of them takes the GIL.
NATIVE = frozenset({"aten", "quantized", "mkldnn", "torchvision"})

#: What the native half computes itself, on sizes.
NUMBERS: dict[Any, str] = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.floordiv: "floordiv",
    operator.truediv: "truediv",
    operator.mod: "mod",
    operator.pow: "pow",
    operator.neg: "neg",
    operator.eq: "eq",
    operator.ne: "ne",
    operator.lt: "lt",
    operator.le: "le",
    operator.gt: "gt",
    operator.ge: "ge",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.not_: "not_",
    operator.getitem: "getitem",
    min: "min",
    max: "max",
    int: "int",
    float: "float",
    round: "round",
    math.ceil: "ceil",
    math.floor: "floor",
    math.trunc: "int",
    math.sqrt: "sqrt",
    torch.sym_max: "max",
    torch.sym_min: "min",
    torch.sym_not: "not_",
    torch.sym_float: "float",
    torch.sym_int: "int",
    torch.sym_ite: "choose",
}

_aten = torch.ops.aten

#: Says what tracing knew already; inputs are checked before the run.
_SKIPPED = frozenset({_aten._assert_tensor_metadata.default})

LARGEST = 2**63 - 1


@dataclass
class Leaf:
    """An input tensor, number or fixed value, by the way to it: ``batch["mask"]``."""

    path: str
    kind: str  # "tensor", "number", "fixed"
    slot: int = -1
    value: Any = None  # of a fixed one; else what stood for it in the tracing


@dataclass
class Argument:
    """An input of the signature: a tree of leaves."""

    name: str
    type: str
    tree: Any
    optional: bool = False


def place_of(node: fx.Node) -> str:
    """``file.py:3: x.view(2)``, of the innermost line outside torch; or empty."""
    frames = re.findall(
        r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)',
        str(node.meta.get("stack_trace") or ""),
    )
    ours = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame[0]]
    if not frames:
        return ""
    file, line, code = (ours or frames)[-1]
    return f"{os.path.basename(file)}:{line}: {code.strip()}"


def title_of(node: fx.Node) -> str:
    """``aten.view.default (file.py:3: x.view(2))``, for messages."""
    target = node.target
    name = getattr(target, "__name__", None) if callable(target) else str(target)
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
    place = place_of(node)
    return f"{name} ({place})" if place else str(name)


@dataclass
class Symbols:
    """The sizes that may vary, numbered as they are met."""

    #: sympy symbol or its name -> (low, high), as export found them.
    ranges: Mapping[Any, Any] = field(default_factory=dict)
    #: What people call them, and which are the same by that.
    names: dict[Any, str] = field(default_factory=dict)
    same: dict[Any, Any] = field(default_factory=dict)
    #: Symbols that a constant has fixed: tracing may have taken its sizes for variable.
    fixed: dict[Any, Any] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    described: list[tuple[str, int, int]] = field(default_factory=list)

    def name(self, symbol: Any, name: str) -> None:
        """Symbols of one name are one."""
        first = next((s for s, n in self.names.items() if n == name), symbol)
        self.names.setdefault(symbol, name)
        if first != symbol:
            self.same[symbol] = first

    def number(self, expr: Any, value: torch.SymInt | None = None) -> int:
        expr = self.same.get(expr, expr)
        key = str(expr)
        if key not in self.found:
            low, high = self._range(expr, value)
            self.found[key] = len(self.described)
            self.described.append((self.names.get(expr, key), low, high))
        return self.found[key]

    def fix(self, traced: Any, tensor: torch.Tensor) -> None:
        """What a constant was traced as, and the constant."""
        if isinstance(traced, torch.Tensor) and traced.dim() == tensor.dim():
            for size, is_really in zip(traced.shape, tensor.shape, strict=True):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self.fixed[size.node.expr] = _sympy_integer(is_really)

    def _range(self, expr: Any, value: torch.SymInt | None) -> tuple[int, int]:
        low, high = self._range_alone(expr, value)
        for other, first in self.same.items():
            if first == expr:
                one, two = self._range_alone(other, None)
                low, high = max(low, one), min(high, two)
        return low, high

    def _range_alone(self, expr: Any, value: torch.SymInt | None) -> tuple[int, int]:
        known = self.ranges.get(expr)
        if known is None and value is not None and expr.is_Symbol:
            env = value.node.shape_env
            known = env.var_to_range.get(expr) if env is not None else None
        if known is None:
            return 0, LARGEST
        low, high = _bound(known.lower, 0), _bound(known.upper, LARGEST)
        # Tracing takes sizes of 0 and 1 for special and says "from 2 on"; 1 is right.
        return (1 if low == 2 else low), high

    def size(self, size: int | torch.SymInt) -> tuple[int, int, int]:
        """(scale, symbol, offset); symbol -1: a constant."""
        if isinstance(size, int):
            return 0, -1, size
        expr = size.node.expr.xreplace(self.fixed)
        if expr.is_Integer:
            return 0, -1, int(expr)
        if len(expr.free_symbols) == 1 and not expr.is_Symbol:
            (symbol,) = expr.free_symbols
            if expr.is_polynomial(symbol):
                scale, offset = expr.coeff(symbol, 1), expr.coeff(symbol, 0)
                if (
                    scale.is_Integer
                    and offset.is_Integer
                    and scale != 0
                    and (expr - scale * symbol - offset).expand() == 0
                ):
                    known = self.number(symbol, size)
                    return int(scale), known, int(offset)
        # Anything else is a size of its own, equal where the same expression is.
        return 1, self.number(expr, size), 0


def fixed_size(size: int | torch.SymInt) -> int | None:
    """What a size is; None: it may vary."""
    if isinstance(size, int):
        return size
    return int(size.node.expr) if size.node.expr.is_Integer else None


def _sympy_integer(value: int) -> Any:
    import sympy

    return sympy.Integer(value)


def _bound(value: Any, unbounded: int) -> int:
    if not getattr(value, "is_Integer", isinstance(value, int)):
        return unbounded  # one of sympy's infinities
    return min(max(int(value), -LARGEST), LARGEST)


class Describer:
    """Collects what a graph is made of; `describe` gives the whole."""

    def __init__(
        self,
        name: str,
        *,
        symbols: Symbols | None = None,
        mutable: bool = False,
        generators: Sequence[torch.Generator] = (),
        devices: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.symbols = symbols or Symbols()
        self.mutable = mutable
        self.generators = tuple(generators)  # of each replica
        self.devices = tuple(devices)  # none: where the constants are
        self.constants: list[torch.Tensor] = []
        self.leaves: list[Leaf] = []
        self.arguments: list[Argument] = []
        self.bodies: list[Any] = [None]
        self.n_slots = 0
        self.refused: list[str] = []
        self._constants: dict[int, int] = {}

    # --- slots ---

    def slot(self) -> int:
        self.n_slots += 1
        return self.n_slots - 1

    def constant(self, tensor: torch.Tensor) -> int:
        """A negative number that stands for the constant until all are known."""
        if not isinstance(tensor, torch.Tensor):
            raise LoadError(f"a constant is a {type(tensor).__name__}, not a tensor")
        if id(tensor) not in self._constants:
            self._constants[id(tensor)] = len(self.constants)
            self.constants.append(tensor)
        return -1 - self._constants[id(tensor)]

    def leaf(self, path: str, value: Any) -> Leaf:
        if isinstance(value, torch.Tensor):
            kind = "tensor"
        elif isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            kind = "number"
        else:
            kind = "fixed"
        self.leaves.append(Leaf(path, kind, value=value))
        return self.leaves[-1]

    # --- nodes ---

    def body(
        self, graph: fx.Graph, owner: fx.GraphModule, slots: dict[fx.Node, Any]
    ) -> Body:
        """Describes a graph whose placeholders have their slots already."""
        body = Body(self, owner, slots)
        for node in graph.nodes:
            body.add(node)
        return body

    def inner(self, module: fx.GraphModule) -> int:
        """A body of control flow: its number."""
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        slots: dict[fx.Node, Any] = {node: self.slot() for node in placeholders}
        number = len(self.bodies)
        self.bodies.append(None)
        body = self.body(module.graph, module, slots)
        results = (
            body.output if isinstance(body.output, (list, tuple)) else [body.output]
        )
        inputs = [slots[node] for node in placeholders]
        self.bodies[number] = (inputs, body.nodes, [body.operand(r) for r in results])
        return number

    def refuse(self, node: fx.Node, why: str = "") -> None:
        text = title_of(node) + (f": {why}" if why else "")
        if text not in self.refused:
            self.refused.append(text)

    # --- the whole ---

    def describe(
        self, nodes: list[Any], results: list[Any], tree: Any, outputs: list[Any]
    ) -> tuple[Any, ...]:
        if self.refused:
            raise LoadError(
                "the program can't run without Python, because of: "
                + "; ".join(self.refused)
            )
        self.bodies[0] = ([], nodes, results)
        leaves = [self._leaf(leaf) for leaf in self.leaves]  # finds symbols
        # Replicas that are all on the CPU are on one device.
        devices = list(dict.fromkeys(self.devices)) or [home_of(self.constants)]
        return (
            self.name,
            devices[0],
            self.mutable,
            devices[1:],
            self.n_slots + len(self.constants),
            [tensor._cdata for tensor in self.constants],
            self.symbols.described,
            leaves,
            [(a.name, a.type, a.tree, a.optional) for a in self.arguments],
            [
                (self._shift(inputs), [self._node(n) for n in nodes], self._shift(out))
                for inputs, nodes, out in self.bodies
            ],
            tree,
            [self._output(path, value) for path, value in outputs],
            None,  # a package of compiled code, and its runners
        )

    def _output(self, path: str | None, value: Any) -> Any:
        """(name, dtype, shape); the last two are None for what is no tensor."""
        if not isinstance(value, torch.Tensor):
            return path, None, None
        shape = [fixed_size(size) for size in value.shape]
        return (
            path,
            str(value.dtype).removeprefix("torch."),
            [-1 if size is None else size for size in shape],
        )

    def _node(self, node: Any) -> Any:
        kind, name, overload, operands, results, place, bodies = node
        return (
            kind,
            name,
            overload,
            self._shift(operands),
            [self._place(slot) for slot in results],
            place,
            bodies,
        )

    def _place(self, slot: int) -> int:
        """Constants come first."""
        return slot + len(self.constants) if slot >= 0 else -1 - slot

    def _shift(self, operand: Any) -> Any:
        if isinstance(operand, list):
            return [self._shift(item) for item in operand]
        if isinstance(operand, tuple) and operand[0] == "slot":
            return ("slot", self._place(operand[1]))
        return operand

    def _leaf(self, leaf: Leaf) -> Any:
        slot = -1 if leaf.slot < 0 else self._place(leaf.slot)
        if leaf.kind == "tensor":
            tensor = leaf.value
            return (
                "tensor",
                leaf.path,
                slot,
                str(tensor.dtype).removeprefix("torch."),
                [self.symbols.size(size) for size in tensor.shape],
            )
        if leaf.kind == "number":
            number = leaf.value
            if isinstance(number, torch.SymInt):
                _, symbol, _ = self.symbols.size(number)
                return ("number", leaf.path, slot, "int", symbol)
            kind = "float" if isinstance(number, torch.SymFloat) else "bool"
            return ("number", leaf.path, slot, kind, -1)
        value = leaf.value
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise LoadError(
                f"input '{leaf.path}' is a {type(value).__name__}: inputs are tensors, "
                "numbers, strings and None, and tuples, lists and dicts of them"
            )
        return ("fixed", leaf.path, slot, value)


def home_of(tensors: Iterable[torch.Tensor]) -> str:
    """The device that they are on; some may be on the CPU all the same. Raises
    `LoadError` for several devices."""
    devices = {str(t.device) for t in tensors if t.device.type != "cpu"}
    if len(devices) > 1:
        raise LoadError(f"the weights are on several devices: {sorted(devices)}")
    return devices.pop() if devices else "cpu"


class Body:
    """One list of nodes in the making."""

    def __init__(
        self, whole: Describer, owner: fx.GraphModule, slots: dict[fx.Node, Any]
    ) -> None:
        self.whole = whole
        self.owner = owner
        self.slots = slots
        self.nodes: list[Any] = []
        self.output: Any = None

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            assert node in self.slots
        elif node.op == "output":
            self.output = node.args[0]
        elif node.op == "get_attr":
            self._get_attr(node)
        elif node.op == "call_function":
            self._call_function(node)
        else:
            self.whole.refuse(node, f"{node.op} is no operator")

    def _get_attr(self, node: fx.Node) -> None:
        value: Any = self.owner
        for name in str(node.target).split("."):
            value = getattr(value, name)
        if isinstance(value, torch.Tensor):
            self.slots[node] = self.whole.constant(value)
        elif not isinstance(value, fx.GraphModule):
            self.whole.refuse(node, f"a constant of type {type(value).__name__}")

    def _call_function(self, node: fx.Node) -> None:
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            if target in _SKIPPED:
                return
            special = _SPECIAL.get(target)
            if special is not None:
                special(self, node)
            else:
                self._call_operator(node, target)
        elif target is operator.getitem and isinstance(
            self.slots.get(node.args[0]),  # type: ignore[arg-type]
            list,
        ):
            # One of several results: the slot has it already.
            results = self.slots[node.args[0]]  # type: ignore[index]
            self.slots[node] = results[node.args[1]]
        elif target is shard:
            slots = [self.whole.slot() for _ in _items(node.args[0])]
            self.slots[node] = slots
            self._append(node, "shard", "", "", list(node.args), slots)
        elif target is barrier:
            self._append(node, "barrier", "", "", [], [])
        elif target in NUMBERS:
            self.number(node, NUMBERS[target], list(node.args))
        elif target is torch.sym_sum:
            self.number(node, "sum", list(node.args[0]))  # type: ignore[arg-type]
        elif target is torch._C._set_grad_enabled:
            return
        elif isinstance(target, torch._ops.HigherOrderOperator):
            self._control_flow(node, target.name())
        else:
            self.whole.refuse(node)
            self.slots[node] = self.whole.slot()

    def number(self, node: fx.Node, kind: str, args: list[Any]) -> None:
        self.slots[node] = self.whole.slot()
        self._append(node, kind, "", "", args, [self.slots[node]])

    def assertion(self, node: fx.Node) -> None:
        self._append(node, "assert", "", "", list(node.args), [])

    def _call_operator(self, node: fx.Node, op: torch._ops.OpOverload) -> None:
        if op.namespace not in NATIVE:
            self.whole.refuse(node, "an operator in Python, or of another library")
        if self.whole.generators and _is_random(node, op):
            seeded = _seeded(op)
            if seeded is None:
                self.whole.refuse(node, "its random numbers can't be seeded")
            else:
                op = seeded
        self.slots[node] = self.call(node, op, node.args, node.kwargs)

    def call(
        self,
        node: fx.Node,
        op: torch._ops.OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Appends a call; gives the slot of its result, or a list of several."""
        given: list[Any] = list(args)
        for argument in op._schema.arguments[len(given) :]:
            given.append((kwargs or {}).get(argument.name, _DEFAULT))
        if self.whole.generators:
            generator = self.whole.generators[node.meta.get("replica", 0)]
            for i, argument in enumerate(op._schema.arguments):
                if _is_generator(argument) and given[i] in (None, _DEFAULT):
                    given[i] = generator
        n_results = len(op._schema.returns)
        slots = [self.whole.slot() for _ in range(n_results)]
        schema = op._schema
        self._append(node, "call", schema.name, schema.overload_name, given, slots)
        return slots[0] if n_results == 1 else slots

    def _control_flow(self, node: fx.Node, name: str) -> None:
        wanted = {"cond": 2, "while_loop": 2}.get(name)
        args = list(node.args)
        graphs = [arg for arg in args if self._graph_of(arg) is not None]
        if wanted is None or len(graphs) != wanted or node.kwargs:
            self.whole.refuse(node, "this control flow isn't served")
            self.slots[node] = self.whole.slot()
            return
        inner = []
        for arg in graphs:
            module = self._graph_of(arg)
            assert module is not None
            inner.append(self.whole.inner(module))
        if name == "cond":
            operands = [args[0], *_items(args[3])]
        else:
            operands = [*_items(args[2]), *_items(args[3] if len(args) > 3 else ())]
        given = self.whole.bodies[inner[-1]]
        slots = [self.whole.slot() for _ in given[2]]
        self._append(node, name, "", "", operands, slots, inner)
        self.slots[node] = slots

    def _graph_of(self, arg: Any) -> fx.GraphModule | None:
        if not isinstance(arg, fx.Node) or arg.op != "get_attr":
            return None
        value: Any = self.owner
        for name in str(arg.target).split("."):
            value = getattr(value, name)
        return value if isinstance(value, fx.GraphModule) else None

    def _append(
        self,
        node: fx.Node,
        kind: str,
        name: str,
        overload: str,
        operands: Sequence[Any],
        results: list[int],
        bodies: Sequence[int] = (),
    ) -> None:
        try:
            described = [self.operand(operand) for operand in operands]
        except _UnknownOperand as unknown:
            self.whole.refuse(node, str(unknown))
            return
        self.nodes.append(
            (kind, name, overload, described, results, title_of(node), list(bodies))
        )

    def operand(self, value: Any) -> Any:
        """An argument as the native half reads it."""
        if isinstance(value, fx.Node):
            slot = self.slots.get(value)
            if slot is None:
                raise _UnknownOperand(f"{title_of(value)} has no value")
            return (
                [("slot", s) for s in slot]
                if isinstance(slot, list)
                else (
                    "slot",
                    slot,
                )
            )
        if isinstance(value, Slot):
            return ("slot", value.number)
        if isinstance(value, (list, tuple)) and value is not _DEFAULT:
            return [self.operand(item) for item in value]
        if value is _DEFAULT or value is None:
            return value
        if isinstance(value, (bool, float, complex, str)):
            return value
        if isinstance(value, int):
            if not -LARGEST <= value <= LARGEST:
                raise _UnknownOperand(f"{value} doesn't fit 64 bits")
            return value
        if isinstance(value, torch.Generator):
            return "generator", value._cdata  # type: ignore[attr-defined]
        for kind, type_ in _ENUMS:
            if isinstance(value, type_):
                return kind, str(value).removeprefix("torch.")
        raise _UnknownOperand(f"an argument of type {type(value).__name__}")


def _items(value: Any) -> Sequence[Any]:
    assert isinstance(value, (list, tuple))
    return value


class _UnknownOperand(Exception):
    pass


@dataclass(frozen=True)
class Slot:
    """A value that no node stands for."""

    number: int


_DEFAULT = ("default",)

_ENUMS: tuple[tuple[str, type], ...] = (
    ("dtype", torch.dtype),
    ("layout", torch.layout),
    ("memory_format", torch.memory_format),
    ("device", torch.device),
)


def _is_random(node: fx.Node, op: torch._ops.OpOverload) -> bool:
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    names = [argument.name for argument in op._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    for argument in op._schema.arguments:
        value = given.get(argument.name, argument.default_value)
        if argument.name in ("train", "training") and value is False:
            return False
        if argument.name in ("dropout_p", "dropout") and value == 0:
            return False
    return True


def _takes_generator(op: torch._ops.OpOverload) -> bool:
    return any(map(_is_generator, op._schema.arguments))


def _is_generator(argument: Any) -> bool:
    return str(argument.type) == "Optional[Generator]"


def _seeded(op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The same operator where it takes a generator; None: there is none."""
    if _takes_generator(op):
        return op
    names = {argument.name for argument in op._schema.arguments}
    for overload in op.overloadpacket.overloads():
        other: torch._ops.OpOverload = getattr(op.overloadpacket, overload)
        others = {argument.name for argument in other._schema.arguments}
        if _takes_generator(other) and others == names | {"generator"}:
            return other
    return None


def _native_dropout(body: Body, node: fx.Node) -> None:
    """As the CPU kernel does it, with the graph's own generator."""
    x, p, train = node.args
    if not body.whole.generators or train is False:
        body.slots[node] = body.call(node, _aten.native_dropout.default, node.args)
        return
    assert isinstance(p, (int, float))
    keep = 1.0 - p
    mask = Slot(body.call(node, _aten.empty_like.default, [x], {"dtype": torch.bool}))
    body.call(node, _aten.bernoulli_.float, [mask, keep])
    kept = Slot(body.call(node, _aten.mul.Tensor, [x, mask]))
    scaled = body.call(
        node, _aten.mul_.Tensor, [kept, 0.0 if keep == 0 else 1.0 / keep]
    )
    body.slots[node] = [scaled, mask.number]


def _sym_size(body: Body, node: fx.Node) -> None:
    body.number(node, "sym_size", list(node.args))


_SPECIAL: dict[Any, Callable[[Body, fx.Node], None]] = {
    _aten.sym_size.int: _sym_size,
    _aten._assert_scalar.default: Body.assertion,
    _aten.native_dropout.default: _native_dropout,
}
