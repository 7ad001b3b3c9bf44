"""What an optimizer's step is, in operators: torch.optim's arithmetic, written into a
graph.

Each rule knows three things of its optimizer: the state a parameter has before its
first step, the numbers a step needs (worked out in Python, with the very expressions
that torch.optim uses, so that they are the same to the last bit), and the operators
that update parameters and state in place.

`fused=True` in the optimizer gives its fused kernel, one operator a group and the
fastest; without it come the operators of torch.optim's default implementation, in their
order, and the result is equal to that bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.fx import Graph, Node

SUPPORTED = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")

Group = Mapping[str, Any]


def number(value: Any) -> float:
    """A hyperparameter as a float: they may be tensors of one element."""
    return float(value)


def _rate(group: Group) -> Any:
    """The learning rate: a float, or a 0-d tensor, which torch.optim works with in the
    tensor's dtype."""
    lr = group["lr"]
    return lr if isinstance(lr, (float, int)) else lr.detach().reshape(())


class Emitter:
    """Appends operators to a graph. Where an operator takes a number that changes from
    step to step, `numbers` holds the node that reads it from the step's inputs."""

    def __init__(self, graph: Graph, numbers: Mapping[str, Any]) -> None:
        self.graph = graph
        self.numbers = numbers

    def __call__(self, operator: Any, *args: Any, **kwargs: Any) -> Node:
        return self.graph.call_function(operator, args, kwargs)


class Rule:
    """How one kind of optimizer updates the parameters of a group."""

    # Hyperparameters that `numbers` reads and that may change from step to step; the
    # others are part of the graph.
    name = ""
    counts = True  # its state has a `step`
    # Of `numbers`, those that differ from step to step even where only the learning
    # rate does …
    stepwise: tuple[str, ...] = ("lr",)
    # … and those that do when this hyperparameter does.
    follows: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, group: Group) -> None:
        self.fused = bool(group.get("fused"))

    def state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """What torch.optim has for a parameter before its first step."""
        raise NotImplementedError

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """What step number `step` (from 1) of a parameter in this group needs."""
        return {name: number(v) for name, v in self._numbers(group, step).items()}

    def _numbers(self, group: Group, step: int) -> dict[str, Any]:
        raise NotImplementedError

    def emit(
        self,
        emit: Emitter,
        group: Group,
        parameters: Sequence[Node],
        gradients: Sequence[Node],
        state: Mapping[str, Sequence[Node]],
    ) -> None:
        """Appends the update of these parameters and their state, in place."""
        raise NotImplementedError

    def columns(self, varying: frozenset[str]) -> tuple[str, ...]:
        """The numbers that are inputs of the step."""
        names = list(self.stepwise)
        for hyperparameter in sorted(varying & self.follows.keys()):
            names += self.follows[hyperparameter]
        return tuple(dict.fromkeys(names))


def _zeros(parameter: Tensor) -> Tensor:
    import torch

    return torch.zeros_like(
        parameter.detach(), memory_format=torch.preserve_format, requires_grad=False
    )


def _counter(parameter: Tensor, *, on_device: bool) -> Tensor:
    """torch.optim's `step`: on the CPU unless the kernel wants it elsewhere."""
    import torch

    wide = torch.get_default_dtype() == torch.float64 and not on_device
    return torch.zeros(
        (),
        dtype=torch.float64 if wide else torch.float32,
        device=parameter.device if on_device else "cpu",
    )


def _decayed(
    emit: Emitter, group: Group, parameters: Sequence[Node], gradients: Sequence[Node]
) -> Any:
    """Gradients after `maximize` and the weight decay that is added to them."""
    import torch

    aten = torch.ops.aten
    result: Any = list(gradients)
    if group.get("maximize"):
        result = emit(aten._foreach_neg.default, result)
    if group["weight_decay"] != 0:
        result = emit(
            aten._foreach_add.List,
            result,
            list(parameters),
            alpha=number(group["weight_decay"]),
        )
    return result


class _SGD(Rule):
    name = "SGD"
    counts = False

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        # A first step takes the gradient as it is: so do zeros without dampening.
        if group["momentum"] != 0 and group["dampening"] != 0:
            self.stepwise = ("lr", "dampening", "share")
        self.follows = {"momentum": ("momentum",)}

    def state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        if group["momentum"] == 0:
            return {}
        return {"momentum_buffer": _zeros(parameter)}

    def _numbers(self, group: Group, step: int) -> dict[str, Any]:
        dampening = 0.0 if step == 1 else number(group["dampening"])
        lr = _rate(group)
        return {
            "lr": lr if self.fused else -lr,
            "momentum": number(group["momentum"]),
            "dampening": dampening,
            "share": 1 - dampening,
        }

    def emit(
        self,
        emit: Emitter,
        group: Group,
        parameters: Sequence[Node],
        gradients: Sequence[Node],
        state: Mapping[str, Sequence[Node]],
    ) -> None:
        import torch

        aten = torch.ops.aten
        numbers = emit.numbers
        buffers = list(state.get("momentum_buffer", ()))
        if self.fused:
            emit(
                aten._fused_sgd_.default,
                list(parameters),
                list(gradients),
                buffers,
                weight_decay=number(group["weight_decay"]),
                momentum=numbers["momentum"],
                lr=numbers["lr"],
                dampening=numbers["dampening"],
                nesterov=bool(group["nesterov"]),
                maximize=bool(group["maximize"]),
                is_first_step=False,
            )
            return
        direction = _decayed(emit, group, parameters, gradients)
        if buffers:
            emit(aten._foreach_mul_.Scalar, buffers, numbers["momentum"])
            emit(aten._foreach_add_.List, buffers, direction, alpha=numbers["share"])
            if group["nesterov"]:
                direction = emit(
                    aten._foreach_add.List,
                    direction,
                    buffers,
                    alpha=numbers["momentum"],
                )
            else:
                direction = buffers
        emit(aten._foreach_add_.List, list(parameters), direction, alpha=numbers["lr"])


class _Adam(Rule):
    name = "Adam"

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.decoupled = bool(group.get("decoupled_weight_decay"))
        if self.fused:
            self.follows = {"betas": ("beta1", "beta2")}
        else:
            self.stepwise = ("size", "correction2") + (
                ("decay",) if self.decoupled and group["weight_decay"] != 0 else ()
            )
            self.follows = {"betas": ("share1", "beta2", "share2")}

    def state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        state = {
            "step": _counter(parameter, on_device=self.fused or group["capturable"]),
            "exp_avg": _zeros(parameter),
            "exp_avg_sq": _zeros(parameter),
        }
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = _zeros(parameter)
        return state

    def _numbers(self, group: Group, step: int) -> dict[str, Any]:
        lr = _rate(group)
        beta1, beta2 = map(number, group["betas"])
        if self.fused:
            return {"lr": lr, "beta1": beta1, "beta2": beta2}
        bias_correction1 = 1 - beta1**step
        bias_correction2 = 1 - beta2**step
        return {
            "size": -(lr / bias_correction1),
            "correction2": bias_correction2**0.5,
            "decay": 1 - lr * number(group["weight_decay"]),
            "share1": 1 - beta1,
            "beta2": beta2,
            "share2": 1 - beta2,
        }

    def emit(
        self,
        emit: Emitter,
        group: Group,
        parameters: Sequence[Node],
        gradients: Sequence[Node],
        state: Mapping[str, Sequence[Node]],
    ) -> None:
        import torch

        aten = torch.ops.aten
        numbers = emit.numbers
        means, squares = list(state["exp_avg"]), list(state["exp_avg_sq"])
        largest = list(state.get("max_exp_avg_sq", ()))
        emit(aten._foreach_add_.Scalar, list(state["step"]), 1)
        if self.fused:
            kernel = aten._fused_adamw_ if self.decoupled else aten._fused_adam_
            emit(
                kernel.default,
                list(parameters),
                list(gradients),
                means,
                squares,
                largest,
                list(state["step"]),
                lr=numbers["lr"],
                beta1=numbers["beta1"],
                beta2=numbers["beta2"],
                weight_decay=number(group["weight_decay"]),
                eps=number(group["eps"]),
                amsgrad=bool(group["amsgrad"]),
                maximize=bool(group["maximize"]),
            )
            return
        if self.decoupled:
            if group["weight_decay"] != 0:
                emit(aten._foreach_mul_.Scalar, list(parameters), numbers["decay"])
            group = {**group, "weight_decay": 0}
        direction = _decayed(emit, group, parameters, gradients)
        emit(aten._foreach_lerp_.Scalar, means, direction, numbers["share1"])
        emit(aten._foreach_mul_.Scalar, squares, numbers["beta2"])
        emit(
            aten._foreach_addcmul_.Scalar,
            squares,
            direction,
            direction,
            numbers["share2"],
        )
        if largest:
            emit(aten._foreach_maximum_.List, largest, squares)
        scale = emit(aten._foreach_sqrt.default, largest or squares)
        emit(aten._foreach_div_.Scalar, scale, numbers["correction2"])
        emit(aten._foreach_add_.Scalar, scale, number(group["eps"]))
        emit(
            aten._foreach_addcdiv_.Scalar,
            list(parameters),
            means,
            scale,
            numbers["size"],
        )


class _AdamW(_Adam):
    name = "AdamW"


class _RMSprop(Rule):
    name = "RMSprop"

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.follows = {"momentum": ("momentum",)}

    def state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        state = {
            "step": _counter(parameter, on_device=group["capturable"]),
            "square_avg": _zeros(parameter),
        }
        if group["momentum"] > 0:
            state["momentum_buffer"] = _zeros(parameter)
        if group["centered"]:
            state["grad_avg"] = _zeros(parameter)
        return state

    def _numbers(self, group: Group, step: int) -> dict[str, Any]:
        return {"lr": -_rate(group), "momentum": number(group["momentum"])}

    def emit(
        self,
        emit: Emitter,
        group: Group,
        parameters: Sequence[Node],
        gradients: Sequence[Node],
        state: Mapping[str, Sequence[Node]],
    ) -> None:
        import torch

        aten = torch.ops.aten
        numbers = emit.numbers
        alpha = number(group["alpha"])
        squares = list(state["square_avg"])
        emit(aten._foreach_add_.Scalar, list(state["step"]), 1)
        direction = _decayed(emit, group, parameters, gradients)
        emit(aten._foreach_mul_.Scalar, squares, alpha)
        emit(aten._foreach_addcmul_.Scalar, squares, direction, direction, 1 - alpha)
        if group["centered"]:
            means = list(state["grad_avg"])
            emit(aten._foreach_lerp_.Scalar, means, direction, 1 - alpha)
            scale = emit(aten._foreach_addcmul.Scalar, squares, means, means, -1)
            emit(aten._foreach_sqrt_.default, scale)
        else:
            scale = emit(aten._foreach_sqrt.default, squares)
        emit(aten._foreach_add_.Scalar, scale, number(group["eps"]))
        if group["momentum"] > 0:
            buffers = list(state["momentum_buffer"])
            emit(aten._foreach_mul_.Scalar, buffers, numbers["momentum"])
            emit(aten._foreach_addcdiv_.Scalar, buffers, direction, scale)
            emit(
                aten._foreach_add_.List, list(parameters), buffers, alpha=numbers["lr"]
            )
        else:
            emit(
                aten._foreach_addcdiv_.Scalar,
                list(parameters),
                direction,
                scale,
                numbers["lr"],
            )


class _Adagrad(Rule):
    name = "Adagrad"

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        if not self.fused:
            self.stepwise = ("rate",)

    def state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        # torch.optim makes it with the optimizer; a parameter without any is none of
        # its.
        import torch

        return {
            "step": _counter(parameter, on_device=self.fused),
            "sum": torch.full_like(
                parameter.detach(), number(group["initial_accumulator_value"])
            ),
        }

    def _numbers(self, group: Group, step: int) -> dict[str, Any]:
        lr = _rate(group)
        if self.fused:
            return {"lr": lr}
        return {"rate": -(lr / (1 + (step - 1) * number(group["lr_decay"])))}

    def emit(
        self,
        emit: Emitter,
        group: Group,
        parameters: Sequence[Node],
        gradients: Sequence[Node],
        state: Mapping[str, Sequence[Node]],
    ) -> None:
        import torch

        aten = torch.ops.aten
        sums = list(state["sum"])
        emit(aten._foreach_add_.Scalar, list(state["step"]), 1)
        if self.fused:
            emit(
                aten._fused_adagrad_.default,
                list(parameters),
                list(gradients),
                sums,
                list(state["step"]),
                lr=emit.numbers["lr"],
                lr_decay=number(group["lr_decay"]),
                weight_decay=number(group["weight_decay"]),
                eps=number(group["eps"]),
                maximize=bool(group["maximize"]),
            )
            return
        direction = _decayed(emit, group, parameters, gradients)
        emit(aten._foreach_addcmul_.Scalar, sums, direction, direction, 1)
        scale = emit(aten._foreach_sqrt.default, sums)
        emit(aten._foreach_add_.Scalar, scale, number(group["eps"]))
        emit(
            aten._foreach_addcdiv_.Scalar,
            list(parameters),
            direction,
            scale,
            emit.numbers["rate"],
        )


_RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (_SGD, _Adam, _AdamW, _RMSprop, _Adagrad)
}


def rules_of(optimizer: torch.optim.Optimizer) -> list[Rule]:
    """A rule for each parameter group.

    Raises `TypeError` for an optimizer, `ValueError` for an option not supported.
    """
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "optimizer: expected a torch.optim optimizer, "
            f"got {type(optimizer).__name__}"
        )
    kind = type(optimizer)
    rule = _RULES.get(kind.__name__)
    if rule is None or kind is not getattr(torch.optim, kind.__name__, None):
        raise TypeError(
            f"optimizer: {kind.__module__}.{kind.__qualname__} isn't supported; "
            f"those of torch.optim that are: {', '.join(SUPPORTED)}"
        )
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if getattr(optimizer, hooks, None):
            raise ValueError(
                "optimizer: has hooks of its step, which are Python and would not run: "
                "remove them"
            )
    for i, group in enumerate(optimizer.param_groups):
        for option in ("differentiable", "capturable"):
            if group.get(option):
                raise ValueError(
                    f"optimizer: {option}=True (parameter group {i}) isn't supported"
                )
    return [rule(group) for group in optimizer.param_groups]


@dataclass
class Bucket:
    """Parameters of one group that have taken equally many steps: one update."""

    group: int
    rule: Rule
    members: list[int]  # where each is in the optimizer's group
    columns: tuple[str, ...]
    # Momentum that was made and no step has used yet: SGD's state doesn't tell, and its
    # first step is another.
    unused: list[Tensor] = field(default_factory=list)

    def parameters(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        group = optimizer.param_groups[self.group]["params"]
        return [group[member] for member in self.members]

    def initialise(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives the parameters the state that their first step would, where they have
        none. Raises `ValueError` where the state that one has doesn't fit."""
        group = optimizer.param_groups[self.group]
        for parameter in self.parameters(optimizer):
            made = initialise(optimizer, self.rule, group, parameter)
            if not self.rule.counts:
                self.unused += made

    def taken(self, optimizer: torch.optim.Optimizer) -> int:
        """How many steps its parameters have taken. SGD doesn't count: 1 after the
        first. Raises `ValueError` where it isn't the same for all."""
        taken = {self._taken(optimizer, p) for p in self.parameters(optimizer)}
        if len(taken) > 1:
            raise ValueError(
                f"optimizer: parameters of group {self.group} have taken "
                f"{sorted(taken)} steps, and equally many when the step was traced: "
                "trace it again"
            )
        return taken.pop()

    def _taken(self, optimizer: torch.optim.Optimizer, parameter: Tensor) -> int:
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if not self.rule.counts and any(momentum is made for made in self.unused):
            return 0
        return steps_taken(optimizer, parameter)

    def stepped(self) -> None:
        """Steps were taken, or state was loaded that has taken some."""
        self.unused.clear()

    def undo(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes momentum that was never used out of the optimizer's state."""
        for parameter in self.parameters(optimizer):
            if self.unused and self._taken(optimizer, parameter) == 0:
                optimizer.state.pop(parameter, None)
        self.unused.clear()


def steps_taken(optimizer: torch.optim.Optimizer, parameter: Tensor) -> int:
    """How many steps an optimizer has made with a parameter. SGD doesn't count them: 1
    where it has a momentum, 0 before."""
    state = optimizer.state.get(parameter, {})
    if "step" in state:
        return int(state["step"])
    return int(state.get("momentum_buffer") is not None)


def initialise(
    optimizer: torch.optim.Optimizer, rule: Rule, group: Group, parameter: Tensor
) -> list[Tensor]:
    """Gives a parameter the state that its first step would, where it has none, and
    returns what it made.

    Raises `ValueError` where the state it has doesn't fit.
    """
    expected = rule.state(parameter, group)
    if not expected:
        return []  # not even an empty entry, as in torch.optim
    state = optimizer.state[parameter]
    made = []
    for name, fresh in expected.items():
        held = state.get(name)
        if held is None:
            state[name] = fresh
            made.append(fresh)
        elif name != "step" and (
            held.shape != fresh.shape or held.device != fresh.device
        ):
            raise ValueError(
                f"optimizer: the state {name!r} of a parameter is "
                f"{list(held.shape)} on {held.device}, the parameter "
                f"{list(fresh.shape)} on {fresh.device}; was the parameter changed "
                "after the optimizer was made or loaded?"
            )
    return made
