"""Traced graphs over live tensors: what a trainer stands on."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

import pyasyncml as ml

torch = pytest.importorskip("torch")
nn = torch.nn

from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from pyasyncml.export._lower import lower, make_graph_model  # noqa: E402

pytestmark = pytest.mark.torch
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def trace(function: Any, *args: Any) -> Any:
    return make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *args
    )


def run(graph: Any, *requests: tuple[Any, ...], **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        model = make_graph_model(graph, **options)
        await model._start()
        async with model:
            return [await model.infer(*request) for request in requests]

    return asyncio.run(main())


def net() -> Any:
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    )


def training_step(module: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Forward, loss, backward and AdamW in one graph, and what it is bound to."""
    names = [name for name, _ in module.named_parameters()]
    state = {
        "p": [p for _, p in module.named_parameters()],
        "b": [b for _, b in module.named_buffers()],
        "m": [torch.zeros_like(p) for p in module.parameters()],
        "v": [torch.zeros_like(p) for p in module.parameters()],
        "t": [torch.zeros(()) for _ in names],
    }
    buffers = [name for name, _ in module.named_buffers()]

    def step(state: Any, x: Any, y: Any) -> Any:
        params = [p.requires_grad_() for p in state["p"]]
        values = dict(zip(names, params, strict=True))
        values |= dict(zip(buffers, state["b"], strict=True))
        loss = nn.functional.cross_entropy(
            torch.func.functional_call(module, values, (x,)), y
        )
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            torch._foreach_add_(state["t"], 1)
            torch._fused_adamw_(
                params,
                grads,
                state["m"],
                state["v"],
                [],
                state["t"],
                lr=0.01,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.01,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
        return loss

    example = torch.utils._pytree.tree_map(lambda t: t.detach().clone(), state)
    gm = trace(step, example, torch.randn(5, 8), torch.randint(3, (5,)))
    placeholders = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
    flat = torch.utils._pytree.tree_leaves(state)
    return gm, dict(zip(placeholders, flat, strict=False))


def test_training_step_is_bit_equal_to_eager_with_dropout_seeded():
    module = net()
    reference = copy.deepcopy(module)
    data = [(torch.randn(n, 8), torch.randint(3, (n,))) for n in [5] * 30 + [2, 9]]
    gm, bound = training_step(module)
    before = torch.get_rng_state()
    versions = [p._version for p in module.parameters()]
    graph = lower(
        gm,
        bound=bound,
        names=["x", "y"],
        mutable=True,
        generator=torch.Generator().manual_seed(7),
        name="step",
    )
    losses = [loss for (loss,) in run(graph, *data)]
    assert torch.equal(torch.get_rng_state(), before)  # it has its own generator

    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01, fused=True)
    torch.manual_seed(7)
    for (x, y), loss in zip(data, losses, strict=True):
        optimizer.zero_grad()
        expected = nn.functional.cross_entropy(reference(x), y)
        expected.backward()
        optimizer.step()
        assert torch.equal(loss, expected.detach())
    for ours, theirs in zip(
        module.state_dict().values(), reference.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    # Python's check for stale graphs goes by these.
    for parameter, version in zip(module.parameters(), versions, strict=True):
        assert parameter._version == version + len(data)


def test_graph_made_before_a_native_step_is_known_to_be_stale():
    weight = torch.ones(3, requires_grad=True)
    gm = trace(lambda w, x: w.mul_(x), torch.ones(3), torch.ones(3))
    graph = lower(gm, bound={"w_1": weight}, mutable=True)
    loss = (weight * weight).sum()
    run(graph, (torch.full((3,), 2.0),))
    assert weight.tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_each_instance_writes_to_its_own_copy_unless_the_graph_is_mutable():
    state = torch.zeros(2)

    def count(s: Any, x: Any) -> Any:
        return s.add_(x) + 0

    gm = trace(count, torch.zeros(2), torch.ones(2))
    ones = (torch.ones(2),)
    got = run(lower(gm, bound={"s_1": state}), ones, ones)
    assert [y.tolist() for y in got] == [[1.0, 1.0], [2.0, 2.0]]
    assert state.tolist() == [0.0, 0.0]
    got = run(lower(gm, bound={"s_1": state}, mutable=True), ones, ones)
    assert state.tolist() == [2.0, 2.0]


def test_inputs_are_named_checked_and_may_agree_about_a_size():
    def function(x: Any, y: Any) -> Any:
        return [x + y, {"rows": x.shape[0]}]

    gm = trace(function, torch.randn(4, 3), torch.randn(4, 3))
    graph = lower(gm, names=["left", "right"])
    ones = torch.ones(2, 3)
    (got,) = run(graph, (ones, ones))
    assert got[0].tolist() == [[2.0] * 3] * 2
    assert got[1] == {"rows": 2}
    with pytest.raises(ml.InputError, match="input 'right': expected dtype float32"):
        run(graph, (ones, ones.long()))
    with pytest.raises(ml.InputError, match="axis 0 of input 'right' .* got 5"):
        run(graph, (ones, torch.ones(5, 3)))
    with pytest.raises(ValueError, match="names: expected 2, got 1"):
        lower(gm, names=["left"])


def test_random_operators_take_the_generator_or_are_refused():
    def noise(x: Any) -> Any:
        uniform = torch.rand_like(x) + torch.randint(0, 9, (3,))
        return uniform + torch.rand(3) + torch.bernoulli(x)

    gm = trace(noise, torch.full((3,), 0.5))
    x = torch.full((3,), 0.5)
    before = torch.get_rng_state()
    draws = [
        run(lower(gm, generator=torch.Generator().manual_seed(seed)), (x,), (x,))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1])
    assert not torch.equal(draws[0][0], draws[2][0])
    torch.manual_seed(1)
    assert torch.equal(draws[0][0], noise(x))

    graph = torch.fx.Graph()
    x_node = graph.placeholder("x")
    x_node.meta["val"] = x
    graph.output(graph.call_function(aten.dropout.default, (x_node, 0.5, True)))
    gm = torch.fx.GraphModule({}, graph)
    with pytest.raises(ml.LoadError, match=r"aten\.dropout.*can't be seeded"):
        lower(gm, generator=torch.Generator())
    lower(gm)  # with the global one


def test_numbers_are_computed_as_python_does():
    """Floor division and remainders of negative numbers, powers, comparisons."""
    import math
    import operator

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = (
        trace(lambda x: x, torch.ones(3))
        .graph.find_nodes(op="placeholder")[0]
        .meta["val"]
    )
    n = graph.call_function(aten.sym_size.int, (x, 0))
    operations = [
        (operator.sub, (n, 10)),
        (operator.floordiv, (-7, n)),
        (operator.mod, (-7, n)),
        (operator.truediv, (n, 2)),
        (operator.pow, (n, 3)),
        (operator.neg, (n,)),
        (operator.lt, (n, 4)),
        (operator.ne, (n, 4)),
        (torch.sym_max, (n, 4)),
        (torch.sym_min, (n, 4)),
        (torch.sym_float, (n,)),
        (math.ceil, (2.5,)),
        (math.floor, (-2.5,)),
        (round, (2.5,)),
        (torch.sym_ite, (True, n, 0)),
    ]
    nodes = [graph.call_function(*operation) for operation in operations]
    graph.output(nodes)
    lowered = lower(torch.fx.GraphModule({}, graph))
    for size in (3, 4, 1):
        expected = [
            function(*(size if arg is n else arg for arg in args))
            for function, args in operations
        ]
        (got,) = run(lowered, (torch.ones(size),))
        assert got == expected
        assert [type(g) for g in got] == [type(e) for e in expected]


def test_arithmetic_that_overflows_is_an_error_with_its_place():
    import operator

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(3)
    n = graph.call_function(aten.sym_size.int, (x, 0))
    big = graph.call_function(operator.pow, (n, 100))
    graph.output(big)
    lowered = lower(torch.fx.GraphModule({}, graph))
    with pytest.raises(ml.BackendError, match=r"a size went past 64 bits \(pow\)"):
        run(lowered, (torch.ones(3),))


def test_every_operator_that_cannot_run_is_named():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(3)
    y = graph.call_function(torch.sin, (x,))
    graph.output(graph.call_function(print, (y,)))
    with pytest.raises(ml.LoadError, match=r"sin; print"):
        lower(torch.fx.GraphModule({}, graph))
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(x)
    with pytest.raises(ml.LoadError, match="input 'x': the graph doesn't say what"):
        lower(torch.fx.GraphModule({}, graph))


def test_wrong_descriptions_are_errors_and_not_crashes():
    from pyasyncml.backends.torch import graph

    gm = trace(lambda x: [x + 1, x.view(-1)], torch.ones(2, 3))
    from pyasyncml.export import _lower

    kept: list[Any] = []
    original = _lower.graph_of
    _lower.graph_of = lambda description, *_: kept.append(description)
    try:
        lower(gm)
    finally:
        _lower.graph_of = original
    (good,) = kept
    graph(good, None)
    wrong = 0
    addresses = (5,)  # of the constants: believed
    for i in set(range(len(good))) - set(addresses):
        for value in (None, -1, 2**70, "nonsense", [1], [("slot", 99)], (), [[]] * 3):
            made = good[:i] + (value,) + good[i + 1 :]
            try:
                graph(made, None)
            except ml.LoadError:
                wrong += 1
    assert wrong > 60
    for i in range(len(good)):
        with pytest.raises(ml.LoadError):
            graph(good[:i], None)
