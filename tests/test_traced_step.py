"""A training step traced into one graph: equal, to the bit, to PyTorch's own loop."""

from __future__ import annotations

import asyncio
import copy
import re
import warnings

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from training_nets import (  # noqa: E402
    NETS,
    batches,
    make,
    run_step,
    run_steps,
    same_state,
    table,
    torch_loop,
    trace,
    twins,
)

from pyasyncml import InputError, LoadError, Trainer  # noqa: E402
from pyasyncml.export._lower import lower, make_graph_model  # noqa: E402
from pyasyncml.training._schedule import Schedule  # noqa: E402
from pyasyncml.training._torch_step import trace_step  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """As a worker has it: sums that several threads share are added up otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OPTIMIZERS = {
    "SGD": lambda p, **k: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, **k
    ),
    "Adam": lambda p, **k: torch.optim.Adam(p, lr=0.003, **k),
    "AdamW": lambda p, **k: torch.optim.AdamW(p, lr=0.003, **k),
}

OTHERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD dampened": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.3),
    "SGD dampened, fused": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, dampening=0.3, fused=True
    ),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "SGD maximize": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.5, weight_decay=0.1, maximize=True
    ),
    "Adam amsgrad": lambda p: torch.optim.Adam(
        p, lr=0.01, amsgrad=True, weight_decay=0.1, maximize=True
    ),
    "Adam amsgrad, fused": lambda p: torch.optim.Adam(
        p, lr=0.01, amsgrad=True, weight_decay=0.1, fused=True
    ),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.003, weight_decay=0.01),
    "RMSprop centered": lambda p: torch.optim.RMSprop(
        p, lr=0.003, centered=True, momentum=0.5
    ),
    "Adagrad": lambda p: torch.optim.Adagrad(
        p, lr=0.03, lr_decay=0.01, weight_decay=0.01, initial_accumulator_value=0.1
    ),
    "Adagrad, fused": lambda p: torch.optim.Adagrad(p, lr=0.03, fused=True),
}


def assert_same(ours, theirs):
    (module, optimizer), (other, reference) = ours, theirs
    assert same_state(module.state_dict(), other.state_dict())
    assert same_state(optimizer.state_dict(), reference.state_dict())


MATRIX = [
    *((net, name, True) for net in NETS for name in OPTIMIZERS),
    *((net, "SGD", None) for net in ("mlp", "convolutional")),
    *((net, "Adam", None) for net in ("mlp with dropout", "transformer")),
    ("convolutional", "AdamW", None),
]


@pytest.mark.parametrize(
    ("net", "name", "fused"),
    MATRIX,
    ids=[f"{net}, {name}, {'fused' if f else 'default'}" for net, name, f in MATRIX],
)
def test_400_native_steps_are_bit_equal_to_pytorch(net, name, fused):
    (module, optimizer), theirs, data = twins(
        net, lambda p: OPTIMIZERS[name](p, fused=fused)
    )
    generator = torch.Generator().manual_seed(7)
    steps = 100 if net == "transformer with dropout" else 400
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = torch_loop(*theirs, batches(steps, *data))

    async def main():
        step = trace(module, optimizer, data, generator=generator)
        rows = torch.from_numpy(table(Schedule(step), steps))
        graph = lower(
            step.graph_module, bound=step.bound, mutable=True, generator=generator
        )
        model = make_graph_model(graph)
        await model._start()
        async with model:
            losses = [
                (await model.infer(*row, *batch))[0]
                for row, batch in zip(rows, batches(steps, *data), strict=True)
            ]
        step.sync(steps)
        return [loss.item() for loss in losses]

    assert asyncio.run(main()) == expected
    assert_same((module, optimizer), theirs)


@pytest.mark.parametrize("name", OTHERS)
def test_every_optimizer_is_bit_equal_to_pytorch(name):
    ours, theirs, data = twins("mlp", OTHERS[name])
    step = trace(*ours, data)
    assert run_steps(step, batches(12, *data)) == torch_loop(
        *theirs, batches(12, *data)
    )
    assert_same(ours, theirs)


def test_fused_and_default_arithmetic_differ_in_the_last_bits_only():
    ours, theirs, data = twins("mlp", OPTIMIZERS["Adam"])
    for group in ours[1].param_groups:
        group["fused"] = True
    run_steps(trace(*ours, data), batches(100, *data))
    torch_loop(*theirs, batches(100, *data))
    for one, two in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert torch.allclose(one, two, rtol=0, atol=5e-6)


def test_groups_frozen_and_unused_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
            self.frozen, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.head(torch.relu(self.frozen(torch.relu(self.body(x)))))

    def optimizer(net):
        return torch.optim.AdamW(
            [
                {"params": [*net.body.parameters(), *net.frozen.parameters()]},
                {"params": net.head.weight, "lr": 0.1, "weight_decay": 0},
                {"params": net.unused.parameters(), "betas": (0.5, 0.9)},
                {"params": net.head.bias, "betas": (0.5, 0.9), "eps": 1e-4},
            ],
            lr=0.01,
        )

    torch.manual_seed(0)
    net = Net()
    other = copy.deepcopy(net)
    data = torch.randn(100, 8), torch.randint(4, (100,))
    ours, theirs = (net, optimizer(net)), (other, optimizer(other))
    step = trace(*ours, data, clip_norm=0.5)
    assert run_steps(step, batches(8, *data)) == torch_loop(
        *theirs, batches(8, *data), clip_norm=0.5
    )
    assert_same(ours, theirs)


def test_tied_weights_are_one_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.tanh(self.one(x)))

    torch.manual_seed(0)
    net = Tied()
    other = copy.deepcopy(net)
    data = torch.randn(100, 8), torch.randint(8, (100,))
    ours = net, torch.optim.Adam(net.parameters())
    theirs = other, torch.optim.Adam(other.parameters())
    assert run_steps(trace(*ours, data), batches(8, *data)) == torch_loop(
        *theirs, batches(8, *data)
    )
    assert_same(ours, theirs)
    assert net.one.weight is net.two.weight


@pytest.mark.parametrize(
    "kind",
    [
        lambda: nn.GRU(5, 6, batch_first=True),
        lambda: nn.LSTM(5, 6, num_layers=2, batch_first=True),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)),
    ],
    ids=["GRU", "LSTM", "spectral_norm", "weight_norm"],
)
def test_modules_of_many_kinds(kind):
    def loss(output, y):
        output = output[0] if isinstance(output, tuple) else output
        return F.mse_loss(output.sum((1, 2)), y)

    torch.manual_seed(0)
    net = kind()
    other = copy.deepcopy(net)
    data = torch.randn(100, 7, 5), torch.randn(100)
    ours = net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    theirs = other, torch.optim.SGD(other.parameters(), lr=1e-3, momentum=0.9)
    got = run_steps(trace(*ours, data, loss=loss), batches(6, *data))
    expected = torch_loop(*theirs, batches(6, *data), loss=loss)
    if isinstance(net, nn.LSTM):  # eager's is oneDNN's
        assert got == pytest.approx(expected, rel=1e-6)
        return
    assert got == expected
    assert_same(ours, theirs)


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * (x > 0)


class Layers(nn.Sequential):
    """Layers one after the other, the rows as a whole given to each function."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
KINDS = {
    "own backward": lambda: Layers(nn.Linear(8, 4), Calls(Clamp.apply)),
    "norms": lambda: Layers(
        Calls(lambda x: x[:, None]),
        nn.Conv1d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(32, 4),
    ),
    "channels last": lambda: Layers(
        Calls(lambda x: x.view(-1, 2, 2, 2).to(memory_format=torch.channels_last)),
        nn.Conv2d(2, 6, 2, padding=1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.Flatten(),
    ).to(memory_format=torch.channels_last),
    "recomputed": lambda: Layers(
        Calls(lambda x: checkpoint(torch.sin, x.requires_grad_(), use_reentrant=False)),
        nn.Linear(8, 4),
    ),
    "embedding": lambda: Layers(
        Calls(lambda x: x.mul(8).long().clamp(-9, 9).add(9)),
        nn.Embedding(19, 8, padding_idx=3, max_norm=1.0),
        Calls(lambda x: x.mean(1)),
        nn.Linear(8, 4),
    ),
}


@pytest.mark.parametrize("fused", [True, None], ids=["fused", "default"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_many_kinds_are_bit_equal_to_pytorch(kind, fused):
    torch.manual_seed(0)
    net = KINDS[kind]()
    other = copy.deepcopy(net)
    loss = nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1)
    data = make("mlp")[1:]
    ours = net, torch.optim.Adam(net.parameters(), lr=0.01, fused=fused)
    theirs = other, torch.optim.Adam(other.parameters(), lr=0.01, fused=fused)
    assert run_steps(trace(*ours, data, loss=loss), batches(6, *data)) == torch_loop(
        *theirs, batches(6, *data), loss=loss
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_tensors_that_the_loss_holds_on_to(dtype):
    def loss(output, y):
        return F.cross_entropy(output, y, weight=WEIGHTS.to(dtype))

    ours, theirs, (x, y) = twins("mlp", OPTIMIZERS["Adam"])
    for net in (ours[0], theirs[0]):
        net.to(dtype)
    data = x.to(dtype), y
    assert run_steps(trace(*ours, data, loss=loss), batches(6, *data)) == torch_loop(
        *theirs, batches(6, *data), loss=loss
    )
    assert_same(ours, theirs)


def test_numbers_and_shapes_that_depend_on_values_are_followed():
    def loss(output, y):
        kept = output[output > 0]
        return kept.square().sum() * output.max().item() / kept.shape[0]

    ours, theirs, data = twins("mlp", OPTIMIZERS["SGD"])
    step = trace(*ours, data, loss=loss)
    assert run_steps(step, batches(6, *data)) == torch_loop(
        *theirs, batches(6, *data), loss=loss
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1e3])
def test_clipping_is_clip_grad_norm(clip):
    ours, theirs, data = twins("convolutional", OPTIMIZERS["SGD"])
    step = trace(*ours, data, clip_norm=clip)
    assert run_steps(step, batches(8, *data)) == torch_loop(
        *theirs, batches(8, *data), clip_norm=clip
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("rows", [32, 30])
def test_accumulation_is_the_loop_over_chunks(rows):
    ours, theirs, data = twins("convolutional", OPTIMIZERS["Adam"])
    step = trace(*ours, data, accumulate=4, clip_norm=1.0)
    ours_data = batches(8, *data, rows=rows, last=16)
    assert run_steps(step, ours_data) == torch_loop(
        *theirs,
        batches(8, *data, rows=rows, last=16),
        accumulate=4,
        clip_norm=1.0,
    )
    assert_same(ours, theirs)


def test_too_few_rows_for_the_parts_make_fewer_parts_as_chunk_does():
    ours, theirs, data = twins("mlp", OPTIMIZERS["SGD"])
    step = trace(*ours, data, accumulate=4)
    few = tuple(tensor[:5] for tensor in data)
    assert not step.fits([t.shape for t in few])
    assert run_steps(step, iter([few])) == torch_loop(
        *theirs, iter([few]), accumulate=3
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "given", [torch.bfloat16, torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_autocast_is_torch_autocast(given):
    ours, theirs, data = twins("mlp", OPTIMIZERS["Adam"])
    step = trace(*ours, data, autocast=given)
    assert run_steps(step, batches(8, *data)) == torch_loop(
        *theirs, batches(8, *data), autocast=torch.bfloat16
    )
    assert_same(ours, theirs)


def test_dropout_draws_from_the_generator_given_and_no_other():
    (module, optimizer), _, data = twins("mlp with dropout", OPTIMIZERS["SGD"])
    start = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    generator = torch.Generator().manual_seed(1)
    step = trace(module, optimizer, data, generator=generator)
    before = torch.get_rng_state()
    first = run_steps(step, batches(6, *data))
    assert torch.equal(torch.get_rng_state(), before)
    module.load_state_dict(start[0])
    optimizer.load_state_dict(start[1])
    assert step.refresh()
    generator.manual_seed(1)
    assert run_steps(step, batches(6, *data)) == first
    assert run_steps(step, batches(6, *data)) != first


def test_tracing_changes_neither_module_nor_random_numbers():
    (module, optimizer), (other, _), data = twins("convolutional", OPTIMIZERS["Adam"])
    before = torch.get_rng_state()
    trace(module, optimizer, data)
    assert same_state(module.state_dict(), other.state_dict())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_mode_of_a_part_is_kept():
    ours, theirs, data = twins("convolutional", OPTIMIZERS["SGD"])
    ours[0][1].eval()
    theirs[0][1].eval()
    assert run_steps(trace(*ours, data), batches(6, *data)) == torch_loop(
        *theirs, batches(6, *data)
    )
    assert_same(ours, theirs)
    assert ours[0][1].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["SGD", "SGD dampened", "Adam amsgrad", "Adagrad"])
def test_pytorch_goes_on_where_steps_ended_and_steps_where_pytorch_did(name):
    ours, theirs, data = twins("mlp", OTHERS[name])
    expected = torch_loop(*theirs, batches(12, *data))
    parts = list(batches(12, *data))
    got = torch_loop(*ours, iter(parts[:3]))
    step = trace(*ours, data)
    got += run_steps(step, iter(parts[3:6]))
    got += torch_loop(*ours, iter(parts[6:9]))
    assert not step.refresh()
    got += run_steps(step, iter(parts[9:]))
    assert got == expected
    assert_same(ours, theirs)


def test_a_loaded_state_dict_is_gone_on_from():
    ours, theirs, data = twins("mlp", OPTIMIZERS["Adam"])
    step = trace(*ours, data)
    torch_loop(*theirs, batches(5, *data))
    ours[0].load_state_dict(theirs[0].state_dict())
    ours[1].load_state_dict(copy.deepcopy(theirs[1].state_dict()))
    assert step.refresh()
    assert not step.refresh()
    assert run_steps(step, batches(5, *data)) == torch_loop(*theirs, batches(5, *data))
    assert_same(ours, theirs)


def test_a_step_never_taken_leaves_the_optimizer_as_it_was():
    ours, theirs, data = twins("mlp", OTHERS["SGD dampened"])
    trace(*ours, data).close()
    assert_same(ours, theirs)
    assert torch_loop(*ours, batches(4, *data)) == torch_loop(
        *theirs, batches(4, *data)
    )


def test_a_graph_of_before_is_not_run_backwards_after_steps():
    (module, optimizer), _, data = twins("mlp", OPTIMIZERS["SGD"])
    loss = module(data[0]).square().sum()
    run_steps(trace(module, optimizer, data), batches(1, *data))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_that_fails_leaves_everything_as_it_was():
    ours, theirs, data = twins("convolutional", OPTIMIZERS["Adam"])
    step = trace(*ours, data)
    run_steps(step, batches(2, *data))
    torch_loop(*theirs, batches(2, *data))
    row = table(Schedule(step), 1)[0]
    with pytest.raises(IndexError):
        run_step(step, row, (data[0][:32], torch.full((32,), 9)))
    assert_same(ours, theirs)


def test_metrics_come_after_the_loss_and_are_averaged_over_the_parts():
    def loss(output, y):
        right = (output.argmax(1) == y).float().mean()
        return F.cross_entropy(output, y), {"accuracy": right}

    (module, optimizer), _, data = twins("mlp", OPTIMIZERS["SGD"])
    for parts in (1, 4):
        step = trace(module, optimizer, data, loss=loss, accumulate=parts)
        assert step.outputs == ("loss", "accuracy")
        batch = tuple(tensor[:32] for tensor in data)
        right = (module(batch[0]).argmax(1) == batch[1]).float().mean()
        results = run_step(step, table(Schedule(step), 1)[0], batch)
        assert results[1].item() == pytest.approx(right.item())


def test_a_loss_may_call_the_module_itself_or_have_parameters():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.register_buffer("seen", torch.tensor(0))

        def forward(self, output, y):
            self.seen.add_(1)
            return F.cross_entropy(output * self.scale, y)

    def penalised(model, x, y):
        return F.cross_entropy(model(x), y) + 0.01 * model[0].weight.square().sum()

    ours, theirs, data = twins("mlp", OPTIMIZERS["SGD"])
    step = trace(*ours, data, loss=penalised)
    assert run_steps(step, batches(4, *data)) == torch_loop(
        *theirs,
        batches(4, *data),
        loss=lambda output, y: (
            F.cross_entropy(output, y) + 0.01 * theirs[0][0].weight.square().sum()
        ),
    )
    module, loss = make("mlp")[0], Scaled()
    optimizer = torch.optim.SGD([*module.parameters(), *loss.parameters()], lr=0.1)
    run_steps(trace(module, optimizer, data, loss=loss), batches(4, *data))
    assert loss.seen == 4
    assert loss.scale != 1


def test_one_row_and_sizes_asked_for_get_graphs_of_their_own():
    ours, theirs, data = twins("mlp", OPTIMIZERS["SGD"])
    step = trace(*ours, data)
    assert step.fits([(2, 8), (2,)])
    assert not step.fits([(2, 8), (3,)])
    single = list(batches(4, *data, last=1))
    assert run_steps(step, iter(single)) == torch_loop(*theirs, iter(single))
    assert_same(ours, theirs)
    assert step.variant(single[3]) is step.variant(single[3])
    assert step.variant(single[0]) is step

    class Asks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2 if x.shape[0] > 20 else 3)

    asks = Asks(8, 4)
    step = trace(asks, torch.optim.SGD(asks.parameters()), data)
    assert step.fits([(21, 8), (21,)])
    assert not step.fits([(20, 8), (20,)])
    small = tuple(tensor[:9] for tensor in data)
    expected = F.cross_entropy(asks(small[0]), small[1]).item()
    assert run_steps(step, iter([small])) == [expected]


def test_a_step_for_one_size_only_says_so():
    class Fixed(nn.Linear):
        def forward(self, x):
            return super().forward(x) * int(x.shape[0])

    fixed = Fixed(8, 4)
    data = make("mlp")[1:]
    step = trace(fixed, torch.optim.SGD(fixed.parameters()), data)
    with pytest.warns(RuntimeWarning, match="holds for batches of one size only"):
        for rows in (5, 6, 7, 8):
            step.variant(tuple(tensor[:rows] for tensor in data))


def test_another_axis_that_varies_soon_has_one_graph():
    net = nn.GRU(5, 4, batch_first=True)

    def loss(output, y):
        return F.cross_entropy(output[0].mean(1), y)

    def batch(length):
        return torch.randn(16, length, 5), torch.randint(4, (16,))

    class Sums(nn.Linear):
        def forward(self, x):
            return (super().forward(x).sum(1),)

    net = Sums(5, 4)
    step = trace_step(
        net,
        lambda output, y: F.cross_entropy(output[0], y),
        torch.optim.SGD(net.parameters(), lr=0.1),
        batch(7),
    )
    second = step.variant(batch(9))
    assert second is not step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(step.variant(batch(n)) is second for n in (10, 11, 30))


# --- what is refused ---


def refused(error, match, module, loss=F.cross_entropy, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.1)
    data = options.pop("data", make("mlp")[1:])
    with pytest.raises(error, match=match):
        trace(module, optimizer, data, loss=loss, **options)


class Odd(nn.Linear):
    """A layer that does something in its forward pass."""

    def __init__(self, what):
        super().__init__(8, 4)
        self.what = what

    def forward(self, x):
        return self.what(self, super().forward(x))


def test_python_that_depends_on_values_is_named_with_its_line():
    def branch(self, x):
        if x.sum() > 0:
            x = x + 1
        return x

    def keep(self, x):
        self.last = x
        return x

    here = re.escape(__file__)
    refused(LoadError, here + r":\d+ `if x.sum\(\) > 0:`: .* torch.where", Odd(branch))
    module = Odd(keep)
    refused(LoadError, "attribute 'last'.*register_buffer", module)
    assert not hasattr(module, "last")


def test_batches_that_do_not_fit_the_module_are_named():
    module, x, y = make("mlp")
    refused(InputError, r"batch\[0\] float32\[32, 7\]", module, data=(x[:, :7], y))
    refused(InputError, "is empty", module, data=(x[:0], y[:0]))
    refused(InputError, "accumulate=4", module, data=(x[:5], y[:5]), accumulate=4)
    step = trace(module, torch.optim.SGD(module.parameters()), (x, y))
    expected = r"batch\[0\]: expected float32\[rows, 8\], got float64\[3, 8\]"
    with pytest.raises(InputError, match=expected):
        step.variant((x[:3].double(), y[:3]))
    with pytest.raises(InputError, match="expected 2 tensors, got 1"):
        step.check((x,))


def test_losses_that_are_none():
    module = make("mlp")[0]

    def per_row(output, y):
        return F.cross_entropy(output, y, reduction="none")

    refused(ValueError, r"expected a scalar, got shape \[32\]", module, per_row)
    refused(TypeError, "expected a tensor, got float", module, lambda o, y: 1.0)
    refused(TypeError, "floating-point", module, lambda o, y: y.sum())
    refused(ValueError, "doesn't depend", module, lambda o, y: torch.tensor(1.0))
    refused(TypeError, "metric 'n'.*traced", module, lambda o, y: (o.sum(), {"n": 1}))
    refused(ValueError, "metric 'o'", module, lambda o, y: (o.sum(), {"o": o}))
    refused(TypeError, "dict of metrics", module, lambda o, y: (o.sum(), o))


def test_optimizers_that_are_not_supported():
    module = make("mlp")[0]
    parameters = list(module.parameters())

    class Mine(torch.optim.SGD):
        pass

    both = "SGD, Adam, AdamW, RMSprop, Adagrad"
    refused(TypeError, both, module, optimizer=torch.optim.Adamax(parameters))
    refused(TypeError, both, module, optimizer=Mine(parameters))
    sparse = nn.Sequential(nn.EmbeddingBag(50, 4, sparse=True))
    bags = torch.randint(50, (32, 6)), torch.randint(4, (32,))
    refused(TypeError, "'0.weight' has a sparse gradient", sparse, data=bags)
    refused(TypeError, "torch.optim optimizer, got str", module, optimizer="adam")
    hooked = torch.optim.SGD(parameters)
    hooked.register_step_post_hook(lambda *_: None)
    refused(ValueError, "hooks of its step", module, optimizer=hooked)
    refused(
        ValueError,
        "differentiable=True",
        module,
        optimizer=torch.optim.SGD(parameters, differentiable=True),
    )
    other = torch.optim.SGD(make("mlp")[0].parameters())
    refused(ValueError, "no parameter of the module", module, optimizer=other)


def test_options_out_of_range():
    module = make("mlp")[0]
    refused(ValueError, "clip_norm", module, clip_norm=0)
    refused(ValueError, "accumulate", module, accumulate=0)
    refused(TypeError, "accumulate", module, accumulate=1.5)
    refused(ValueError, "float16 needs", module, autocast=torch.float16)
    refused(TypeError, "autocast", module, autocast="bf16")
    refused(TypeError, "loss: expected a callable", module, loss=None)
    with pytest.raises(TypeError, match="Module, got function"):
        trace_step(make, F.cross_entropy, None, ())


def test_hooks_are_refused_since_they_would_run_once_only():
    module = make("mlp")[0]
    handle = module[0].register_forward_hook(lambda *_: None)
    refused(ValueError, "module '0' has a forward hook", module)
    handle.remove()
    handle = module[2].register_full_backward_hook(lambda *_: None)
    refused(ValueError, "module '2' has a backward hook", module)
    handle.remove()
    module[0].bias.register_hook(lambda g: g)
    refused(ValueError, "parameter '0.bias' has a hook", module)


def test_changes_under_way_that_the_graph_does_not_know():
    (module, optimizer), _, data = twins("mlp", OPTIMIZERS["Adam"])
    step = trace(module, optimizer, data)
    optimizer.param_groups[0]["lr"] = 1.0
    assert not step.refresh()
    optimizer.param_groups[0]["eps"] = 1.0
    module[2].eval()
    module[3].bias.requires_grad_(False)
    changed = (
        "optimizer: 'eps' of parameter group 0, the mode of '2', "
        "requires_grad of '3.bias' changed"
    )
    assert step.outdated() == changed
    with pytest.raises(ValueError, match="changed since the step was traced"):
        step.refresh()
    optimizer.param_groups[0]["eps"] = 1e-8
    module.train().requires_grad_()
    assert not step.outdated()
    module[0].weight.data = module[0].weight.data.clone()
    assert step.refresh()
    assert not step.refresh()
    module[0].weight.data = torch.zeros(16, 9)
    with pytest.raises(ValueError, match=r"float32\[16, 9\]|is \[16, 8\]"):
        step.refresh()


def test_a_trainer_follows_what_is_changed_between_two_runs():
    ours, theirs, data = twins("mlp with dropout", OPTIMIZERS["AdamW"])

    async def main():
        trainer = Trainer(
            ours[0], loss=nn.CrossEntropyLoss(), optimizer=ours[1], seed=7
        )
        losses = []
        for batch in batches(8, *data, last=32):
            losses.append((await trainer.step(*batch))["loss"])
            if len(losses) == 4:
                ours[0].eval()
                ours[1].param_groups[0]["weight_decay"] = 0.5
        await trainer.close()
        return losses

    got = asyncio.run(main())
    with torch.random.fork_rng():
        torch.manual_seed(7)
        parts = list(batches(8, *data, last=32))
        expected = torch_loop(*theirs, iter(parts[:4]))
        theirs[0].eval()
        theirs[1].param_groups[0]["weight_decay"] = 0.5
        expected += torch_loop(*theirs, iter(parts[4:]))
    assert got == expected
    assert_same(ours, theirs)
