"""Sessions: order within, batches across, state that stays native, and its end."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Tuple  # noqa: UP035

import numpy as np
import pytest

import pyasyncml as ml

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

ZERO = np.zeros((1, 1), np.float32)


class Adder(torch.nn.Module):
    """Gives the sum of all it was given so far; refuses what is negative."""

    def forward(
        self, x: torch.Tensor, total: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
        if bool((x < 0).any()):
            raise ValueError("negative")
        return total + x, total + x

    @torch.jit.export
    def forgetful(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return total + x

    @torch.jit.export
    def wider(
        self, x: torch.Tensor, total: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
        return total, torch.cat([total, x], 1)

    @torch.jit.export
    def two(
        self, x: torch.Tensor, first: torch.Tensor, last: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # noqa: UP006
        """The state's batch axes are 0 and 1."""
        return x, last.t(), first + x, x.t()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("sessions") / "adder.pt"
    torch.jit.script(Adder().eval()).save(str(path))
    return str(path)


def number(n):
    return np.full((1, 1), n, np.float32)


def test_chunks_run_in_their_order_and_state_is_carried_on(run, path):
    async def main():
        async with ml.load(path, instances=2) as model:
            with model.session(total=ZERO) as session:
                sums = await asyncio.gather(
                    *(session.infer(number(n), priority=n % 3) for n in range(50))
                )
                assert [float(y[0, 0]) for y in sums] == np.cumsum(range(50)).tolist()

    run(main)


def test_sessions_share_runs_and_keep_their_states_apart(run, path):
    async def main():
        async with ml.load(path, batching=ml.Batching(max_rows=16)) as model:
            sessions = [model.session(total=number(100 * n)) for n in range(40)]
            for turn in range(1, 6):
                results = await asyncio.gather(
                    *(s.infer(number(n)) for n, s in enumerate(sessions))
                )
                expected = [100 * n + turn * n for n in range(40)]
                assert [float(y[0, 0]) for y in results] == expected
            assert model.stats().rows == 200
            for session in sessions:
                session.close()

    run(main)


def test_whole_streams_at_once_are_served_as_one_by_one(run, path):
    async def main():
        async with ml.load(
            path, batching=ml.Batching(max_rows=8), instances=2
        ) as model:
            sessions = [model.session(total=ZERO) for _ in range(30)]
            streams = [[s.infer(number(1)) for _ in range(20)] for s in sessions]
            for stream in streams:
                sums = await asyncio.gather(*stream)
                assert [float(y[0, 0]) for y in sums] == list(range(1, 21))

    run(main)


def test_chunk_that_is_cancelled_or_expires_before_it_runs_leaves_the_state(run, path):
    async def main():
        async with ml.load(path) as model:
            session = model.session(total=ZERO)
            loop = asyncio.get_running_loop()
            futures = [session.infer(number(1)) for _ in range(3)]
            futures.append(session.infer(number(100), timeout=0))
            futures.append(session.infer(number(100)))
            # In the same turn none but the first can have begun.
            futures[-1].cancel()
            futures += [session.infer(number(1)) for _ in range(3)]
            await asyncio.wait(futures)
            assert futures[4].cancelled()
            assert isinstance(futures[3].exception(), ml.DeadlineExceeded)
            served = [f for n, f in enumerate(futures) if n not in (3, 4)]
            assert [float(f.result()[0, 0]) for f in served] == [1, 2, 3, 4, 5, 6]
            assert loop is asyncio.get_running_loop()

    run(main)


def test_chunk_that_fails_leaves_the_state_and_the_others_alone(run, path):
    async def main():
        async with ml.load(path, batching=ml.Batching(max_rows=8)) as model:
            sessions = [model.session(total=ZERO) for _ in range(8)]
            await asyncio.gather(*(s.infer(number(1)) for s in sessions))
            outcomes = await asyncio.gather(
                *(s.infer(number(-1 if n == 5 else 1)) for n, s in enumerate(sessions)),
                return_exceptions=True,
            )
            assert isinstance(outcomes.pop(5), ml.BackendError)
            assert {float(y[0, 0]) for y in outcomes} == {2}
            assert float((await sessions[5].infer(number(1)))[0, 0]) == 2

    run(main)


def test_reset_counts_for_what_is_submitted_after_it(run, path):
    async def main():
        async with ml.load(path) as model:
            session = model.session(total=number(5))
            futures = [session.infer(number(1)), session.infer(number(1))]
            session.reset()
            futures += [session.infer(number(1)), session.infer(number(1))]
            sums = await asyncio.gather(*futures)
            assert [float(y[0, 0]) for y in sums] == [6, 7, 6, 7]

    run(main)


@pytest.mark.parametrize("fate", ["cancelled", "late", "refused"])
def test_reset_holds_also_where_the_next_chunk_never_runs(run, path, fate):
    async def main():
        queue = ml.Queue(max_rows=1_000, when_full="reject", max_bytes=1_000)
        async with ml.load(path, queue=queue) as model:
            session = model.session(total=ZERO)
            futures = [session.infer(number(1)) for _ in range(3)]
            session.reset()
            if fate == "cancelled":
                gone = session.infer(number(1))
                gone.cancel()
            elif fate == "late":
                gone = session.infer(number(1), timeout=0)
            else:
                gone = session.infer(np.ones((1_000, 1), np.float32))
            futures += [session.infer(number(1)), session.infer(number(1))]
            await asyncio.wait([gone])
            sums = [float(y[0, 0]) for y in await asyncio.gather(*futures)]
            assert sums == [1, 2, 3, 1, 2]
            assert gone.cancelled() or gone.exception() is not None

    run(main)


def test_what_sessions_hold_counts_towards_the_queues_bound(run, path):
    async def main():
        queue = ml.Queue(max_rows=4, when_full="drop_lowest")
        async with ml.load(path, queue=queue) as model:
            # So large that a run takes longer than a call of infer().
            x = np.ones((1, 1_000_000), np.float32)
            session = model.session(total=np.zeros_like(x))
            futures = [session.infer(x) for _ in range(50)]
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            served = [float(y[0, 0]) for y in outcomes if isinstance(y, np.ndarray)]
            assert served == list(range(1, len(served) + 1))
            refused = [y for y in outcomes if isinstance(y, ml.QueueFull)]
            assert len(refused) == 50 - len(served) > 0
            assert model.stats().waiting == 0

    run(main)


def test_what_the_caller_does_to_a_result_does_not_reach_the_state(run, path):
    """The model gives one tensor twice: as its result and as the state."""

    async def main():
        async with ml.load(path) as model:
            session = model.session(total=ZERO)
            for n in range(1, 5):
                total = await session.infer(number(1))
                assert float(total[0, 0]) == n
                total[:] = -100

    run(main)


def test_closed_session_serves_what_it_has_and_takes_no_more(run, path):
    async def main():
        async with ml.load(path) as model:
            session = model.session(total=ZERO)
            futures = [session.infer(number(1)) for _ in range(10)]
            session.close()
            session.close()
            with pytest.raises(ml.ModelClosed, match="the session is closed"):
                session.infer(number(1))
            assert float((await asyncio.gather(*futures))[-1][0, 0]) == 10

    run(main)


def test_model_that_closes_without_draining_answers_what_sessions_hold(run, path):
    async def main():
        model = await ml.load(path)
        sessions = [model.session(total=ZERO) for _ in range(5)]
        futures = [s.infer(number(1)) for s in sessions for _ in range(200)]
        await model.close(drain=False)
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for stream in (outcomes[n : n + 200] for n in range(0, 1_000, 200)):
            kinds = [type(outcome) for outcome in stream]
            served = kinds.count(np.ndarray)  # those that came first
            assert kinds == [np.ndarray] * served + [ml.ModelClosed] * (200 - served)

    run(main)


def test_model_that_closes_serves_what_sessions_hold(run, path):
    async def main():
        model = await ml.load(path, batching=ml.Batching(), instances=2)
        sessions = [model.session(total=ZERO) for _ in range(5)]
        futures = [s.infer(number(1)) for s in sessions for _ in range(100)]
        await model.close()
        sums = await asyncio.gather(*futures)
        assert [float(y[0, 0]) for y in sums] == 5 * list(range(1, 101))

    run(main)


def test_thousands_of_sessions_open_and_close(run, path):
    async def main():
        async with ml.load(path, batching=ml.Batching(max_rows=64)) as model:
            sessions = [model.session(total=number(n)) for n in range(3_000)]
            sums = await asyncio.gather(*(s.infer(ZERO) for s in sessions))
            assert [int(y[0, 0]) for y in sums] == list(range(3_000))

    run(main)


def test_several_states_with_batch_axes_of_their_own(run, path):
    async def main():
        batching = ml.Batching(axes={"last": 1}, output_axes={1: 0, 3: 1})
        async with ml.load(path, entry="two", batching=batching) as model:
            sessions = [
                model.session(last=number(-n).T, first=number(n)) for n in range(20)
            ]
            for turn in range(3):
                results = await asyncio.gather(
                    *(s.infer(number(turn)) for s in sessions)
                )
                for n, (x, last) in enumerate(results):
                    assert x.tolist() == [[turn]]
                    assert last.tolist() == [[-n if turn == 0 else turn - 1]]

    run(main)


def test_what_is_no_state_is_refused(run, path):
    async def main():
        async with ml.load(path) as model:
            with pytest.raises(ml.InputError, match="no input named 'totall'"):
                model.session(totall=ZERO)
            with pytest.raises(ml.InputError, match="expected 1 to 4 states"):
                model.session()
            with pytest.raises(TypeError, match="total"):
                model.session(total=object())
            session = model.session(total=ZERO)
            with pytest.raises(ml.InputError, match="'total' is the session's state"):
                session.infer(ZERO, total=ZERO)
            with pytest.raises(ml.InputError, match="2 inputs were given"):
                session.infer(ZERO, ZERO)
            with pytest.raises(ml.InputError, match="'x' is missing"):
                session.infer()
            assert float((await session.infer(number(1)))[0, 0]) == 1

    run(main)


@pytest.mark.parametrize(
    ("entry", "said"),
    [("forgetful", "a tuple that ends with them"), ("wider", "shape")],
)
def test_model_that_gives_no_state_is_told_so(run, path, entry, said):
    async def main():
        async with ml.load(path, entry=entry) as model:
            session = model.session(total=ZERO)
            for _ in range(2):
                with pytest.raises(ml.BackendError, match=said):
                    await session.infer(number(1))

    run(main)


# --- reload ---


class Weighted(torch.nn.Module):
    """Adds so many times what it is given."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(
        self, x: torch.Tensor, total: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
        total = total + self.weight * x
        return total, total


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> dict[int, str]:
    folder = tmp_path_factory.mktemp("versions")
    paths = {weight: str(folder / f"{weight}.pt") for weight in (1, 10, 100)}
    for weight, path in paths.items():
        torch.jit.script(Weighted(float(weight)).eval()).save(path)
    return paths


def test_state_goes_on_with_the_weights_of_a_reload(run, versions):
    async def main():
        async with ml.load(versions[1]) as model:
            session = model.session(total=ZERO)
            assert float((await session.infer(number(3)))[0, 0]) == 3
            await model.reload(versions[10])
            assert float((await session.infer(number(3)))[0, 0]) == 33
            session.reset()
            await model.reload(versions[100])
            assert float((await session.infer(number(3)))[0, 0]) == 300

    run(main)


@pytest.mark.parametrize("rows", [None, 8])
def test_chunks_in_a_queue_at_a_reload_are_served_in_order_and_none_is_lost(
    run, versions, rows
):
    """Also those that their sessions hold back in the old program's queue."""
    batching = ml.Batching(rows) if rows else None

    async def main():
        async with ml.load(versions[1], batching=batching, instances=2) as model:
            sessions = [model.session(total=ZERO) for _ in range(12)]
            streams = [[s.infer(number(1)) for _ in range(60)] for s in sessions]
            reload = asyncio.ensure_future(model.reload(versions[10]))
            while not reload.done():
                for session, stream in zip(sessions, streams, strict=True):
                    stream += [session.infer(number(1)) for _ in range(3)]
                await asyncio.sleep(0.001)
            await reload
            for session, stream in zip(sessions, streams, strict=True):
                stream += [session.infer(number(1)) for _ in range(10)]
                sums = [float(y[0, 0]) for y in await asyncio.gather(*stream)]
                steps = np.diff([0, *sums]).tolist()
                # What was asked before the change is the old weights', all the rest
                # the new ones'.
                assert steps == sorted(steps)
                assert set(steps) == {1.0, 10.0}
                assert steps.count(1.0) >= 60
                assert steps.count(10.0) >= 10
            stats = model.stats()
            assert stats.completed == stats.submitted
            assert stats.waiting == 0

    run(main)


def test_reload_that_changes_a_states_shape_fails_the_chunk_and_leaves_the_state(
    run, versions, tmp_path
):
    """TorchScript states no shapes, so a reload can't see it."""

    class Wider(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, total: torch.Tensor
        ) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
            return x, torch.cat([total, x], 1)

    wider = str(tmp_path / "wider.pt")
    torch.jit.script(Wider().eval()).save(wider)

    async def main():
        async with ml.load(versions[1]) as model:
            session = model.session(total=number(5))
            await session.infer(number(1))
            await model.reload(wider)
            with pytest.raises(ml.BackendError, match="shape"):
                await session.infer(number(1))
            await model.reload(versions[10])
            assert float((await session.infer(number(1)))[0, 0]) == 16

    run(main)


# --- the real speech detector ---


def speech_detector() -> str:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("silero-vad is not installed")
    path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit"
    return str(path)


def test_streams_of_the_speech_detector_in_batches_are_those_of_its_core_alone():
    path = speech_detector()
    chunks = np.random.default_rng(0).normal(0, 0.1, (24, 6, 1, 576))
    chunks = chunks.astype(np.float32)

    async def main():
        batching = ml.Batching(max_rows=16, axes={"state": 1}, output_axes={1: 1})
        async with ml.load(path, entry="_model.forward", batching=batching) as model:
            zeros = np.zeros((2, 1, 128), np.float32)
            sessions = [model.session(state=zeros) for _ in chunks]
            streams = [
                [session.infer(chunk) for chunk in stream]
                for session, stream in zip(sessions, chunks, strict=True)
            ]
            results = [await asyncio.gather(*stream) for stream in streams]
            assert model.stats().runs < len(chunks) * 6
        return np.array(results).reshape(24, 6)

    served = asyncio.run(main())
    core = torch.jit.load(path)._model
    with torch.inference_mode():
        for stream, probabilities in zip(chunks, served, strict=True):
            state = torch.zeros(2, 1, 128)
            for chunk, probability in zip(stream, probabilities, strict=True):
                expected, state = core(torch.from_numpy(chunk), state)
                assert abs(float(expected) - probability) < 1e-5


def test_program_with_state_of_its_own_refuses_batches():
    async def main():
        with pytest.raises(ml.LoadError, match="keeps state of its own"):
            await ml.load(speech_detector(), batching=ml.Batching())
        async with ml.load(speech_detector()) as model:
            assert model.signature.stateful

    asyncio.run(main())
