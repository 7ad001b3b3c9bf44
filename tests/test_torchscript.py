"""TorchScript archives through `pyasyncml.load`: what goes in, what comes out."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union  # noqa: UP035

import numpy as np
import pytest

import pyasyncml as ml

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.torch

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Scripts (or traces with example inputs) a module into an archive: its path."""

    def write(module: Any, *example: Any) -> str:
        module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            program = (
                torch.jit.trace(module, example, check_trace=False)
                if example
                else torch.jit.script(module)
            )
        path = tmp_path / f"{type(module).__name__}.pt"
        program.save(str(path))
        return str(path)

    return write


def infer(path: str, *inputs: Any, entry: str | None = None, **named: Any) -> Any:
    """One request to a model that is loaded for it."""

    async def main() -> Any:
        async with ml.load(path, entry=entry) as model:
            return await model.infer(*inputs, **named)

    return asyncio.run(main())


class Pair(NamedTuple):
    first: torch.Tensor
    second: int


class Structures(nn.Module):
    """One method a structure; torch.jit.script needs typing's own names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))
        self.linear = nn.Linear(3, 3)

    def forward(
        self,
        x,
        y: Optional[torch.Tensor] = None,  # noqa: UP045
        k: int = 2,
        f: float = 0.5,
        name: str = "none",
        flag: bool = False,
    ):
        out = x * k * f
        if y is not None:
            out = out + y
        return out, [x + 1, x + 2], {"name": x.sum()}, name, flag, k, f, None

    @torch.jit.export
    def containers(
        self,
        xs: List[torch.Tensor],  # noqa: UP006
        named: Dict[str, torch.Tensor],  # noqa: UP006
        pair: Tuple[torch.Tensor, int],  # noqa: UP006
        sizes: List[int],  # noqa: UP006
    ):
        return torch.stack(xs).sum(0) + named["a"] * pair[1] + pair[0] * sizes[0]

    @torch.jit.export
    def pair(self, p: Pair):
        return Pair(p.first + 1, p.second + 1)

    @torch.jit.export
    def either(self, x: Union[int, str, torch.Tensor]) -> str:  # noqa: UP007
        if isinstance(x, int):
            return "int"
        elif isinstance(x, str):  # noqa: RET505
            return "str"
        else:
            return "tensor"

    @torch.jit.export
    def numbers(self, x: float, i: int):
        return x * i

    @torch.jit.export
    def same(self, x):
        return x

    @torch.jit.export
    def first_row(self, x):
        return x[0]

    @torch.jit.export
    def same_weight(self):
        return self.weight.view(1, 3)

    @torch.jit.export
    def views(self, x):
        y = x + 1
        return y.chunk(2), y

    @torch.jit.export
    def expanded(self, x):
        return (x + 1).expand(4, -1)

    @torch.jit.export
    def conjugate(self, x):
        return torch.conj(x * 2)

    @torch.jit.export
    def sparse(self, x):
        return x.to_sparse()

    @torch.jit.export
    def doubled_in_place(self, x):
        return x.mul_(2)

    @torch.jit.export
    def doubled_in_list(self, xs: List[torch.Tensor]):  # noqa: UP006
        xs[0].mul_(2)
        return xs

    @torch.jit.export
    def int_keys(self, x):
        return {3: x + 1}

    @torch.jit.export
    def raises(self, x):
        if x.sum() > 0:
            raise ValueError("no positive sums")
        return x

    @torch.jit.export
    def too_large(self, x):
        return torch.zeros([1 << 45])

    @torch.jit.export
    def layer(self, x):
        return self.linear(x)


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.total = torch.zeros(2)
        self.last = torch.zeros(2)
        self.history = torch.jit.Attribute([], List[torch.Tensor])  # noqa: UP006
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.total = self.total + x
        return self.total

    @torch.jit.export
    def count(self, x):
        self.seen.add_(1)
        return self.seen

    @torch.jit.export
    def previous(self, x):
        last = self.last
        self.last = x
        return last

    @torch.jit.export
    def remember_ones(self, x):
        self.history.append(torch.zeros_like(x).add_(1))
        return self.history

    @torch.jit.export
    def remember(self, x):
        self.history.append(x + 1)
        return self.history


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def mlp() -> Any:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def cnn() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(8 * 36, 10),
    )


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.layers(x)


# --- results ---


@pytest.mark.parametrize("how", ["scripted", "traced"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(mlp, (5, 16)), (cnn, (3, 1, 8, 8)), (Encoder, (2, 7, 32))],
    ids=["mlp", "cnn", "encoder"],
)
def test_results_are_those_of_eager_inference_bit_for_bit(
    save: Save, make: Callable[[], Any], shape: tuple[int, ...], how: str
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    x = torch.randn(shape)
    path = save(module, x) if how == "traced" else save(module)
    program = torch.jit.load(path).eval()
    # The last bits of a product depend on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            expected = program(x)
    finally:
        torch.set_num_threads(threads)

    async def main() -> list[Any]:
        # The weights of the second instance are the first one's.
        async with ml.load(path, instances=2) as model:
            return await asyncio.gather(*(model.infer(x) for _ in range(8)))

    for y in asyncio.run(main()):
        assert torch.equal(y, expected)
        assert not y.requires_grad


def test_numpy_in_gives_numpy_out_and_torch_in_torch_out(save: Save) -> None:
    path = save(Structures())
    assert isinstance(infer(path, X, entry="same"), np.ndarray)
    assert isinstance(infer(path, torch.from_numpy(X), entry="same"), torch.Tensor)


def test_result_structure_comes_back_as_it_is(save: Save) -> None:
    out, pair, named, name, flag, k, f, nothing = infer(save(Structures()), X)
    np.testing.assert_array_equal(out, X)
    assert isinstance(pair, list)
    np.testing.assert_array_equal(pair[0], X + 1)
    np.testing.assert_array_equal(pair[1], X + 2)
    assert named["name"].shape == ()
    assert named["name"] == 15
    assert (name, flag, k, f, nothing) == ("none", False, 2, 0.5, None)


def test_dict_results_may_have_other_keys_than_strings(save: Save) -> None:
    np.testing.assert_array_equal(
        infer(save(Structures()), X, entry="int_keys")[3], X + 1
    )


def test_left_out_arguments_take_their_defaults(save: Save) -> None:
    path = save(Structures())
    assert infer(path, X, k=3)[5] == 3
    np.testing.assert_array_equal(infer(path, X, f=2.0)[0], X * 4)
    np.testing.assert_array_equal(infer(path, X, X)[0], X * 2)
    np.testing.assert_array_equal(infer(path, X, None, 1, 3)[0], X * 3)
    assert infer(path, X, name="é", flag=True)[3:5] == ("é", True)


def test_containers_go_in_as_the_types_ask(save: Save) -> None:
    path = save(Structures())
    y = infer(path, [X, X], {"a": X}, (X, 2), [1, 2], entry="containers")
    np.testing.assert_array_equal(y, X * 5)
    y = infer(path, (X, X), {"a": X}, [X, 2], (1, 2), entry="containers")
    np.testing.assert_array_equal(y, X * 5)
    first, second = infer(path, (X, 1), entry="pair")
    np.testing.assert_array_equal(first, X + 1)
    assert second == 2


@pytest.mark.parametrize(("value", "kind"), [(X, "tensor"), (1, "int"), ("s", "str")])
def test_union_arguments_keep_what_they_are(save: Save, value: Any, kind: str) -> None:
    assert infer(save(Structures()), value, entry="either") == kind


def test_numbers_go_in_where_tensors_are_wanted_and_the_reverse(save: Save) -> None:
    path = save(Structures())
    assert infer(path, 3, entry="same") == 3
    assert infer(path, 2, 3, entry="numbers") == 6.0
    scalars = np.float32(2.5), np.int64(2)
    assert infer(path, *scalars, entry="numbers") == 5.0


@pytest.mark.parametrize(
    "x",
    [
        X[::-1, ::2],
        X.T,
        np.broadcast_to(X[0], (4, 3)),
        np.empty((0, 3), np.float32),
        np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32),
        X.astype(np.int16),
        X.astype(np.complex64),
        X > 2,
        np.array(3.0),
    ],
    ids=[
        "backwards",
        "transposed",
        "broadcast",
        "empty",
        "unaligned",
        "int16",
        "complex64",
        "bool",
        "no dimensions",
    ],
)
def test_any_memory_layout_goes_in(save: Save, x: Any) -> None:
    y = infer(save(Structures()), x, entry="same")
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


# --- whose memory it is ---


def test_results_never_share_memory_with_inputs_or_weights(save: Save) -> None:
    path = save(Structures())

    async def main() -> None:
        async with ml.load(path, entry="same") as model:
            y = await model.infer(X)
            assert not np.shares_memory(y, X)
        async with ml.load(path, entry="first_row") as model:
            y = await model.infer(X)
            assert not np.shares_memory(y, X)
            np.testing.assert_array_equal(y, X[0])
        async with ml.load(path, entry="same_weight") as model:
            (await model.infer())[:] = -1
            y = await model.infer()
            assert y.tolist() == [[0, 1, 2]]

    asyncio.run(main())


def test_views_of_one_result_stay_views_of_it(save: Save) -> None:
    (first, second), whole = infer(save(Structures()), X, entry="views")
    whole[:] = 7
    assert (first == 7).all()
    assert (second == 7).all()


def test_result_that_repeats_its_elements_is_written_out(save: Save) -> None:
    y = infer(save(Structures()), X[0], entry="expanded")
    y[0] = 7
    np.testing.assert_array_equal(y[1:], np.broadcast_to(X[0] + 1, (3, 3)))


def test_lazy_conjugates_are_resolved(save: Save) -> None:
    x = X.astype(np.complex64) + 1j
    y = infer(save(Structures()), x, entry="conjugate")
    np.testing.assert_array_equal(y, np.conj(x * 2))


@pytest.mark.parametrize("entry", ["doubled_in_place", "doubled_in_list"])
def test_model_that_works_in_place_does_not_write_to_the_callers_memory(
    save: Save, entry: str
) -> None:
    x = X.copy()
    x.flags.writeable = False
    y = infer(save(Structures()), [x] if entry.endswith("list") else x, entry=entry)
    np.testing.assert_array_equal(y[0] if entry.endswith("list") else y, X * 2)
    np.testing.assert_array_equal(x, X)


def test_model_may_keep_its_input(save: Save) -> None:
    path = save(State())

    async def main() -> None:
        async with ml.load(path, entry="previous") as model:
            for value in range(20):
                x = np.full(1 << 16, value, np.float32)
                last = await model.infer(x)
                x[:] = -1
                if value > 0:
                    assert (last == value - 1).all()

    asyncio.run(main())


class BackWithAView(nn.Module):
    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
        return x, x.t()


def test_view_of_an_input_that_comes_back_itself_is_a_copy_too(save: Save) -> None:
    """The input counted as a tensor of the result's own, and its view as its alone."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    same, view = infer(save(BackWithAView()), x)
    x[:] = -1
    assert same.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert view.tolist() == [[0, 3], [1, 4], [2, 5]]


# --- state ---


@pytest.mark.parametrize("entry", ["forward", "count"])
def test_instances_of_a_stateful_model_have_states_of_their_own(
    save: Save, entry: str
) -> None:
    """Each state counts its own runs: together they count all, and no run twice."""
    path = save(State())
    x = np.ones(2, np.float32)

    async def main() -> None:
        with pytest.warns(RuntimeWarning, match="keeps state of its own") as told:
            model = await ml.load(path, entry=entry, instances=2, warmup=False)
            async with ml.load(path, entry=entry, instances=2, warmup=False):
                pass
        assert [warning.filename for warning in told] == 2 * [__file__]
        async with model:
            results = await asyncio.gather(*(model.infer(x) for _ in range(50)))
        counted = sorted(float(y[0]) for y in results)
        alone = int(counted[-1])
        other = len(results) - alone
        assert counted == sorted([*range(1, alone + 1), *range(1, other + 1)])

    asyncio.run(main())


@pytest.mark.parametrize(
    "entry", ["forward", "count", "previous", "remember", "remember_ones"]
)
def test_what_keeps_state_of_its_own_says_so(save: Save, entry: str) -> None:
    path = save(State())

    async def main() -> None:
        async with ml.load(path, entry=entry) as model:
            assert model.signature.stateful

    asyncio.run(main())


def test_writing_to_a_tensor_of_its_own_making_is_no_state(save: Save) -> None:
    """torch's encoder fills its masks in place, beside weights in one list."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    path = save(net)
    xs = torch.randn(4, 1, 3, 8)

    async def main() -> None:
        async with ml.load(path, batching=ml.Batching(max_rows=4)) as model:
            assert not model.signature.stateful
            served = await asyncio.gather(*map(model.infer, xs))
        with torch.inference_mode():
            for x, y in zip(xs, served, strict=True):
                torch.testing.assert_close(y, net(x))

    asyncio.run(main())


def test_result_list_that_the_model_keeps_is_copied(save: Save) -> None:
    path = save(State())
    x = np.ones(2, np.float32)

    async def main() -> None:
        async with ml.load(path, entry="remember") as model:
            first = await model.infer(x)
            first[0][:] = 7
            second = await model.infer(x)
            assert [y.tolist() for y in second] == [[2, 2], [2, 2]]

    asyncio.run(main())


# --- the signature ---


def test_signature_says_names_types_and_what_may_be_left_out(save: Save) -> None:
    path = save(Structures())

    async def main() -> ml.Signature:
        async with ml.load(path) as model:
            return model.signature

    signature = asyncio.run(main())
    assert signature.entry == "forward"
    names = [(spec.name, spec.type, spec.optional) for spec in signature.inputs]
    assert names == [
        ("x", "Tensor", False),
        ("y", "Optional[Tensor]", True),
        ("k", "int", True),
        ("f", "float", True),
        ("name", "str", True),
        ("flag", "bool", True),
    ]
    assert "None" in signature.inputs[1].kinds
    assert signature.outputs[0].kinds == ("tuple",)


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("inputs", "entry", "message"),
    [
        ((), "same", "x"),
        ((X, X), "same", "2 inputs"),
        (([X],), "same", "x"),
        ((None,), "same", "x"),
        ((X, None, 2.5), "forward", "k"),
        (([X, "s"], {"a": X}, (X, 1), [1]), "containers", r"xs\[1\] must be Tensor"),
        (([X], {"a": None}, (X, 1), [1]), "containers", r'named\["a"\] must be Tensor'),
        (([X], {"a": X}, (X,), [1]), "containers", "tuple of 1"),
        (([X], {"a": X}, (X, 1), [1.5]), "containers", r"sizes\[0\] must be int"),
    ],
)
def test_inputs_that_do_not_fit_are_an_input_error_that_names_them(
    save: Save, inputs: tuple[Any, ...], entry: str, message: str
) -> None:
    with pytest.raises((ml.InputError, TypeError), match=message):
        infer(save(Structures()), *inputs, entry=entry)


def test_failed_run_is_a_short_backend_error_and_the_model_goes_on(save: Save) -> None:
    path = save(Structures())

    async def main() -> None:
        async with ml.load(path, entry="layer") as model:
            with pytest.raises(ml.BackendError, match="cannot be multiplied") as error:
                await model.infer(X[:, :2])
            # Where it happened: the file, the line, the function and what is there.
            assert re.search(
                r"\(\S*linear\.py:\d+, in forward: return F\.linear\(.*\)\)$",
                str(error.value),
            )
            assert "frame #" not in str(error.value)
            assert len(str(error.value).splitlines()) == 1
            assert (await model.infer(X)).shape == (2, 3)

    asyncio.run(main())


def test_exception_raised_by_the_model_is_a_backend_error_with_its_words(
    save: Save,
) -> None:
    with pytest.raises(ml.BackendError, match="ValueError: no positive sums"):
        infer(save(Structures()), X, entry="raises")


def test_sparse_result_is_a_backend_error_that_says_so(save: Save) -> None:
    with pytest.raises(ml.BackendError, match="Sparse tensor"):
        infer(save(Structures()), X, entry="sparse")


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="ASan ends the process at an allocation of this size",
)
def test_memory_that_runs_out_is_out_of_memory(save: Save) -> None:
    with pytest.raises(ml.OutOfMemory, match="can't allocate memory"):
        infer(save(Structures()), X, entry="too_large")


def test_unknown_entry_is_a_load_error_that_lists_the_entries(save: Save) -> None:
    with pytest.raises(
        ml.LoadError, match=r"'nothing'.*forward, conjugate, containers"
    ):
        infer(save(Structures()), X, entry="nothing")


def test_damaged_archives_are_load_errors(save: Save, tmp_path: Path) -> None:
    whole = Path(save(mlp())).read_bytes()
    damaged = tmp_path / "damaged.pt"
    for content in (whole[: len(whole) // 2], whole[100:], b"PK\3\4", b"\x80\2}", b""):
        damaged.write_bytes(content)
        with pytest.raises(ml.LoadError, match=r"damaged\.pt"):
            infer(str(damaged), X)


def test_absent_device_is_a_load_error_that_says_which_there_are(save: Save) -> None:
    path = save(mlp())

    async def main() -> None:
        async with ml.load(path, device="cuda:99"):
            pass

    with pytest.raises(ml.LoadError, match=r"no device cuda:99; torch can run on: cpu"):
        asyncio.run(main())


# --- threads ---


def test_workers_finish_while_the_main_thread_holds_the_gil(save: Save) -> None:
    path = save(mlp())
    x = torch.randn(1, 16)

    async def main() -> None:
        async with ml.load(path, inputs=x, instances=2) as model:
            before = model.stats().completed
            futures = [model.infer(x) for _ in range(100)]
            await asyncio.sleep(0)  # one turn of the loop publishes them
            interval = sys.getswitchinterval()
            sys.setswitchinterval(60)
            try:
                end = time.monotonic() + 30
                while model.stats().completed - before < 100:
                    assert time.monotonic() < end
            finally:
                sys.setswitchinterval(interval)
            await asyncio.gather(*futures)

    asyncio.run(main())


def test_one_thread_is_one_whatever_torch_set_num_threads_said(save: Save) -> None:
    path = save(nn.Linear(512, 512))
    script = (
        "import asyncio, sys, time, torch\n"
        "torch.set_num_threads(2)\n"
        "import pyasyncml as ml\n"
        "x = torch.randn(512, 512)\n"
        "torch.nn.functional.linear(x, x)\n"
        "async def main():\n"
        "    async with ml.load(sys.argv[1], inputs=x, threads=1) as model:\n"
        "        busy = sum(model.stats().busy)\n"
        "        cpu = time.process_time()\n"
        "        for _ in range(100):\n"
        "            await model.infer(x)\n"
        "        cpu = time.process_time() - cpu\n"
        "        busy = sum(model.stats().busy) - busy\n"
        "        assert cpu < 1.5 * busy, (cpu, busy)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True)
