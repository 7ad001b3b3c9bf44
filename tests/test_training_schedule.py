"""Learning rates worked out ahead are those that PyTorch's own loop goes through."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

from torch.optim import lr_scheduler as lrs  # noqa: E402
from training_nets import (  # noqa: E402
    batches,
    run_steps,
    same_state,
    table,
    torch_loop,
    trace,
    twins,
)

from pyasyncml.training._schedule import (  # noqa: E402
    RealScheduler,
    Schedule,
    varying,
)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


SCHEDULERS = {
    "StepLR": lambda o: lrs.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 3, 7]),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda n: 0.9**n),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, total_iters=3), lrs.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler(
        [lrs.ConstantLR(o, 0.1, 4), lrs.ExponentialLR(o, 0.9)]
    ),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=40),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, 3),
}


@pytest.mark.parametrize(
    ("name", "optimizer", "cadence"),
    [
        *((name, sgd, "step") for name in SCHEDULERS),
        *((name, adam, "epoch") for name in ("StepLR", "SequentialLR", "OneCycleLR")),
        ("OneCycleLR", adam, "step"),
        ("LambdaLR", adam, "step"),
    ],
)
def test_a_scheduler_has_the_effect_that_it_has_in_pytorch(name, optimizer, cadence):
    ours, theirs, data = twins("mlp", optimizer)
    scheduler, reference = SCHEDULERS[name](ours[1]), SCHEDULERS[name](theirs[1])
    step = trace(*ours, data, varying=varying(scheduler))
    real = RealScheduler(ours[1], scheduler, cadence)
    parts = list(batches(11, *data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run_steps(step, iter(parts[:5]), Schedule(step, scheduler, cadence, 4))
        real.advance(5, 1)
        got += run_steps(
            step, iter(parts[5:]), Schedule(step, scheduler, cadence, 4, position=1)
        )
        real.advance(6, 1)
    assert got == torch_loop(
        *theirs, iter(parts), scheduler=reference, every=1 if cadence == "step" else 4
    )
    assert same_state(ours[0].state_dict(), theirs[0].state_dict())
    assert same_state(ours[1].state_dict(), theirs[1].state_dict())
    assert scheduler.get_last_lr() == reference.get_last_lr()


def test_working_out_a_table_leaves_optimizer_and_scheduler_alone():
    (module, optimizer), _, data = twins("mlp", sgd)
    scheduler = lrs.StepLR(optimizer, 1, 0.5)
    schedule = Schedule(trace(module, optimizer, data), scheduler, "step")
    before = repr(optimizer.state_dict()), repr(scheduler.state_dict())
    rows = table(schedule, 3)
    assert schedule.step.columns == ("lr[0]",)
    assert rows.tolist() == [[-0.01], [-0.005], [-0.0025]]  # times what is added
    assert (repr(optimizer.state_dict()), repr(scheduler.state_dict())) == before


def test_the_table_of_plain_optimizers_has_the_learning_rate_of_each_bucket():
    (module, optimizer), _, data = twins(
        "mlp",
        lambda p: torch.optim.Adam(
            [
                {"params": group, "lr": lr}
                for group, lr in zip(list(p), (1, 2, 3, 4), strict=True)
            ],
            fused=True,
        ),
    )
    step = trace(module, optimizer, data)
    assert step.columns == ("lr[0]", "lr[1]", "lr[2]", "lr[3]")
    assert table(Schedule(step), 2).tolist() == [[1, 2, 3, 4]] * 2


def test_a_table_is_called_constant_only_where_it_is():
    for make, constant in (
        (sgd, True),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1), False),
        (adam, False),
        (lambda p: torch.optim.Adam(p, fused=True), True),
        (lambda p: torch.optim.RMSprop(p), True),
        (lambda p: torch.optim.Adagrad(p, lr_decay=0.1), False),
    ):
        (module, optimizer), _, data = twins("mlp", make)
        schedule = Schedule(trace(module, optimizer, data))
        rows = table(schedule, 3).tolist()
        assert (rows[0] == rows[1] == rows[2]) == schedule.constant == constant


def test_a_plateau_takes_the_metric_of_each_epoch():
    (_, optimizer), _, _ = twins("mlp", sgd)
    scheduler = lrs.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    real = RealScheduler(optimizer, scheduler, "epoch")
    assert real.needs_metric
    real.advance(2, 1)
    real.advance_with(1.0)
    real.advance(2, 1)
    real.advance_with(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.005
    with pytest.raises(ValueError, match="takes a metric"):
        RealScheduler(optimizer, scheduler, "step")


def test_what_is_no_scheduler_of_this_optimizer_is_refused():
    (_, optimizer), (_, other), _ = twins("mlp", sgd)
    with pytest.raises(TypeError, match="got float"):
        RealScheduler(optimizer, 0.1, "epoch")
    with pytest.raises(ValueError, match="another optimizer"):
        RealScheduler(optimizer, lrs.StepLR(other, 1), "epoch")
    with pytest.raises(ValueError, match="'step' or 'epoch'"):
        RealScheduler(optimizer, None, "week")


def test_a_table_of_epochs_of_no_known_length_ends_none():
    (module, optimizer), _, data = twins("mlp", sgd)
    step = trace(module, optimizer, data)
    scheduler = lrs.StepLR(optimizer, 1, 0.5)
    assert table(Schedule(step, scheduler, "epoch"), 3).tolist() == [[-0.01]] * 3
    rows = table(Schedule(step, scheduler, "epoch", 3, position=2), 3)
    assert rows.tolist() == [[-0.01], [-0.005], [-0.005]]


def test_a_scheduler_of_more_than_the_traced_hyperparameters_is_refused():
    (module, optimizer), _, data = twins("mlp", sgd)
    scheduler = SCHEDULERS["OneCycleLR"](optimizer)
    schedule = Schedule(trace(module, optimizer, data), scheduler, "step")
    with pytest.raises(ValueError, match="changes more than the learning rate"):
        table(schedule, 3)
