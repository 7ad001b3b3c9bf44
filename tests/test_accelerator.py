"""The simulated accelerator itself: that it is as late, and as strict, as it has to be
for the tests that stand on it. Everything here is plain torch."""

from __future__ import annotations

import pytest
from accelerator import KERNEL, TO_DEVICE, TO_HOST, blocks_waiting, timeline

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.accelerator, pytest.mark.torch]

ZERO = "privateuseone:0"


@pytest.fixture(autouse=True)
def device(accelerators):
    return accelerators[0]


def pinned(values):
    return torch.tensor(values).pin_memory()


def read(tensor):
    """The values, once everything before is done."""
    return tensor.cpu().tolist()


# --- late, and in order ---


def test_kernels_end_late_and_shapes_are_known_at_once(device):
    x = torch.ones(3, device=ZERO)
    done = torch.Event(ZERO)
    with device.gate(KERNEL):
        y = (x + 1).reshape(3, 1) @ torch.ones(1, 2, device=ZERO)
        done.record()
        assert y.shape == (3, 2)
        assert not done.query()
    done.synchronize()
    assert read(y) == [[2, 2]] * 3


def test_copies_are_asynchronous_from_and_to_pinned_memory_only(device):
    source, target = pinned([1.0, 2.0]), pinned([0.0, 0.0])
    with device.gate(TO_DEVICE | TO_HOST):
        x = source.to(ZERO, non_blocking=True)
        target.copy_(x, non_blocking=True)
        assert target.tolist() == [0, 0]
    torch.accelerator.synchronize()
    assert target.tolist() == [1, 2]
    counted = device.counters()
    assert (counted.to_device_pinned, counted.to_host_pinned) == (1, 1)

    pageable = torch.zeros(2)
    pageable.copy_(x, non_blocking=True)
    assert pageable.tolist() == [1, 2]


def test_a_stream_waits_for_the_event_it_was_told_to_wait_for(device):
    side = torch.Stream(ZERO)
    source = pinned([1.0, 2.0, 3.0])
    x = torch.empty(3, device=ZERO)
    side.wait_stream(torch.accelerator.current_stream())
    with device.gate(TO_DEVICE):
        with side:
            x.copy_(source, non_blocking=True)
        torch.accelerator.current_stream().wait_event(side.record_event())
        y = x * 2
    assert read(y) == [2, 4, 6]


def test_a_device_has_one_engine_for_kernels_and_one_for_copies(device):
    x = torch.ones(2, device=ZERO)
    torch.accelerator.synchronize()
    source, sides = pinned([1.0]), [torch.Stream(ZERO), torch.Stream(ZERO)]
    device.slow(kernel=0.005, to_device=0.005)
    with timeline() as spans:
        with device.gate(TO_DEVICE):
            for side in sides:
                with side:
                    x + source.to(ZERO, non_blocking=True)
        torch.accelerator.synchronize()
    kernels = [span for span in spans if span.kind == KERNEL]
    copies = [span for span in spans if span.kind == TO_DEVICE]
    assert kernels[0].end <= kernels[1].begin
    assert copies[0].end <= copies[1].begin
    assert copies[1].begin < kernels[0].end


# --- mistakes are seen ---


def test_missing_wait_for_a_copy_reads_poison(device):
    side = torch.Stream(ZERO)
    source = pinned([1.0, 2.0, 3.0])
    x = torch.empty(3, device=ZERO)
    torch.accelerator.synchronize()
    with device.gate(TO_DEVICE):
        with side:
            x.copy_(source, non_blocking=True)
        y = x * 2  # without side.record_event() and wait_event()
        assert all(value != value for value in read(y))
    assert device.counters().poison_read > 0
    device.reset()


@pytest.mark.parametrize("recorded", [True, False])
def test_block_freed_while_another_stream_reads_it(device, recorded):
    side = torch.Stream(ZERO)
    x = torch.ones(1000, device=ZERO)
    side.wait_stream(torch.accelerator.current_stream())
    torch.accelerator.synchronize()
    with device.gate_stream(side.stream_id):
        with side:
            y = x + 1
        if recorded:
            x.record_stream(side)
        del x
        assert blocks_waiting() == recorded
        other = torch.full((1000,), 5.0, device=ZERO)
        torch.accelerator.current_stream().synchronize()
    side.synchronize()
    assert (y.cpu()[0].item() == 2) is recorded
    assert other.cpu()[0].item() == 5
    assert blocks_waiting() == 0
    if not recorded:
        device.reset()


def test_pinned_buffer_written_too_early_gives_wrong_numbers(device):
    source = pinned([1.0, 2.0])
    with device.gate(TO_DEVICE):
        x = source.to(ZERO, non_blocking=True)
        source.fill_(7)
    assert read(x) == [7, 7]


def test_pinned_buffer_freed_during_its_copy_is_kept_until_it_is_done(device):
    source = pinned([1.0, 2.0])
    with device.gate(TO_DEVICE):
        x = source.to(ZERO, non_blocking=True)
        del source
        other = torch.full((2,), 7.0).pin_memory()
    assert read(x) == [1, 2]
    assert other.tolist() == [7, 7]


# --- faults ---


def test_failure_comes_from_the_event_after_it_and_from_no_other(device):
    x = torch.ones(2, device=ZERO)
    torch.accelerator.synchronize()
    device.fail("went wrong", after=1)
    events = []
    for _ in range(3):
        x + 1
        events.append(torch.Event(ZERO))
        events[-1].record()
    events[0].synchronize()
    with pytest.raises(RuntimeError, match="went wrong"):
        events[1].synchronize()
    events[2].synchronize()
    assert read(x) == [1, 1]


def test_lost_device_fails_for_good_and_takes_no_other_along(device, accelerators):
    x = torch.ones(2, device=ZERO)
    torch.accelerator.synchronize()
    device.fail("device lost", for_good=True)
    x + 1
    for _ in range(2):
        with pytest.raises(RuntimeError, match="device lost"):
            torch.accelerator.synchronize(ZERO)
    with pytest.raises(RuntimeError, match="device lost"):
        torch.ones(2, device=ZERO)
    assert read(torch.ones(1, device="privateuseone:1") + 1) == [2]


def test_memory_beyond_the_limit_is_an_out_of_memory_error(device):
    device.limit_memory(device.counters().live_bytes + 4096)
    with pytest.raises(torch.OutOfMemoryError, match="simulated device 0"):
        torch.empty(4096, device=ZERO)
    assert torch.empty(1024, device=ZERO).numel() == 1024


def test_index_out_of_range_fails_late(device):
    x = torch.ones(3, 2, device=ZERO)
    y = x.index_select(0, torch.tensor([7], device=ZERO))
    assert y.shape == (1, 2)
    with pytest.raises(RuntimeError, match="index out of range"):
        torch.accelerator.synchronize()


# --- the right results ---


def train(device):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, 3),
    ).to(device)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(5):
        x, y = torch.randn(8, 1, 8, 8).to(device), torch.randint(0, 3, (8,)).to(device)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return [parameter.cpu() for parameter in net.parameters()]


def test_training_gives_the_parameters_that_the_cpu_gives():
    for here, there in zip(train("cpu"), train(ZERO), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-6)


def test_random_numbers_shapes_that_depend_on_values_and_outputs_that_grow():
    x = torch.arange(6, device=ZERO)
    assert read(x[x > 3]) == [4, 5]
    assert read(torch.nonzero(x)) == [[1], [2], [3], [4], [5]]
    assert x.sum().item() == 15
    assert torch.equal(x.to("privateuseone:1").cpu(), torch.arange(6))
    out = torch.empty(0, dtype=torch.long, device=ZERO)
    torch.cumsum(x, 0, out=out)
    assert read(out) == [0, 1, 3, 6, 10, 15]
    torch.manual_seed(7)
    drawn = [torch.rand(3), torch.randn(3), torch.randperm(9)]
    torch.manual_seed(7)
    again = [torch.rand(3, device=ZERO), torch.randn(3, device=ZERO)]
    again.append(torch.randperm(9, device=ZERO))
    assert [tensor.tolist() for tensor in drawn] == [read(tensor) for tensor in again]
    assert read(x.view(2, 3).t().contiguous().flatten()) == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("loss", ["mse_loss", "smooth_l1_loss", "l1_loss"])
def test_losses_whose_kernels_resize_their_out_for_a_while(loss):
    function = getattr(torch.nn.functional, loss)
    drawn = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for where in ("cpu", ZERO):
        x = drawn.detach().to(where).requires_grad_()
        value = function(x, torch.ones(5, 3, device=where))
        value.backward()
        found.append((value.item(), x.grad.cpu()))
    torch.testing.assert_close(found[0], found[1])
