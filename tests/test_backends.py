"""What every backend for files does alike: one body of tests, and the same nets for
all, trained once and exported for each of them (backend_nets.py)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import FOR_EVER, outcomes

import pyasyncml as ml

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from backend_nets import BACKENDS, LENGTH, WIDTH, Backend, Net, Nets, running  # noqa: E402

from pyasyncml.demo import digits  # noqa: E402

pytestmark = pytest.mark.torch

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
CLIENTS = 32
INSTALLED = [backend for backend in BACKENDS if not backend.missing()]


@pytest.fixture(scope="module")
def data() -> Any:
    return digits.load_data()


@pytest.fixture(scope="module")
def images(data: Any) -> np.ndarray:
    """float32 [450, 1, 8, 8], none of which was trained on."""
    return data.test_images.numpy()


@pytest.fixture(scope="module")
def nets(data: Any) -> Nets:
    trained = (asyncio.run(digits.train(data, epochs=n)) for n in (20, 1))
    return Nets(*(Net(found.net) for found in trained))


@pytest.fixture(scope="module")
def expected(nets: Nets, images: np.ndarray) -> np.ndarray:
    """The good net's scores, float32 [450, 10]."""
    return nets.good(images)


@pytest.fixture(scope="module")
def others(nets: Nets, images: np.ndarray) -> np.ndarray:
    """The other's."""
    return nets.other(images)


@pytest.fixture(scope="module")
def folder(nets: Nets, tmp_path_factory: Any) -> Callable[[Backend], Path]:
    """Where a backend's exports are, written when they are first asked for."""
    root = tmp_path_factory.mktemp("nets")

    def written(backend: Backend) -> Path:
        path = root / backend.id
        if not path.exists():
            path.mkdir()
            backend.write(nets, path)
        return path

    return written


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(folder: Callable[[Backend], Path], images: np.ndarray) -> None:
    """XLA makes threads when it compiles its first program, which have the name
    of the worker that asked for it: they are there before the first test."""

    async def serve(backend: Backend) -> None:
        async with ml.load(folder(backend) / "good", device=backend.device) as model:
            await model.infer(images)

    for backend in INSTALLED:
        if backend.name == "xla":
            asyncio.run(serve(backend))


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.id)
def backend(request: pytest.FixtureRequest) -> Backend:
    if missing := request.param.missing():
        pytest.skip(f"{', '.join(missing)} is not installed")
    return request.param


def only(has: str) -> pytest.MarkDecorator:
    """Those backends alone that have a quality."""
    found = [backend for backend in BACKENDS if getattr(backend, has)]
    ids = [backend.id for backend in found]
    return pytest.mark.parametrize("backend", found, ids=ids, indirect=True)


@pytest.fixture
def load(backend: Backend, folder: Callable[[Backend], Path]) -> Callable[..., Any]:
    """`ml.load` of one of the nets."""

    def load(which: str = "good", **options: Any) -> Any:
        return ml.load(folder(backend) / which, device=backend.device, **options)

    return load


# --- results ---


def test_outputs_are_the_nets_and_accurate(run, backend, load, images, expected, data):
    async def main():
        async with load() as model:
            assert model.stats().backend == backend.name
            scores = await model.infer(images)
            np.testing.assert_allclose(scores, expected, **CLOSE)
            accuracy = (scores.argmax(1) == data.test_labels.numpy()).mean()
            assert accuracy >= 0.95

    run(main)


def test_numpy_gives_numpy_and_torch_gives_torch(load, images, expected):
    async def main():
        async with load() as model:
            for kind, x, scores in [
                (np.ndarray, images[:3], expected[:3]),
                (np.ndarray, images[::-7], expected[::-7]),
                (torch.Tensor, torch.from_numpy(images[:3].copy()), expected[:3]),
            ]:
                got = await model.infer(x)
                assert type(got) is kind
                np.testing.assert_allclose(got, scores, **CLOSE)

    asyncio.run(main())


def test_results_outlive_the_model(load, images, expected):
    async def main():
        async with load() as model:
            return await asyncio.gather(
                *(model.infer(images[i : i + 1]) for i in (0, 1))
            )

    first, second = asyncio.run(main())
    first[:] = 0  # and are the caller's own
    np.testing.assert_allclose(second, expected[1:2], **CLOSE)


# --- the scheduler ---


def one_by_one(model, images, **options):
    return [model.infer(images[i : i + 1], **options) for i in range(len(images))]


def test_requests_share_runs_and_are_counted(run, backend, load, images, expected):
    async def main():
        batching = ml.Batching(max_rows=32, max_delay=FOR_EVER)
        async with load(batching=batching) as model:
            count = 14 * 32
            results = await asyncio.gather(*one_by_one(model, images[:count]))
            np.testing.assert_allclose(
                np.concatenate(results), expected[:count], **CLOSE
            )
            stats = model.stats()
            assert stats.backend == backend.name
            assert (stats.runs, stats.rows, stats.requests) == (14, count, count)
            assert (stats.submitted, stats.completed) == (count, count)
            assert stats.releases["full"] == 14
            assert (stats.failed, stats.cancelled, stats.expired) == (0, 0, 0)
            assert (stats.waiting, stats.waiting_bytes, stats.parked) == (0, 0, 0)
            assert 0 < stats.run_p50 <= stats.run_p99
            assert 0 < stats.wait_p50 <= stats.wait_p99
            assert sum(stats.busy) > 0
            (instance,) = stats.instances
            assert (instance.runs, instance.rows) == (14, count)
            assert instance.device == backend.device
            # A request of more rows than a run may have is cut.
            scores = await model.infer(images)
            np.testing.assert_allclose(scores, expected, **CLOSE)

    run(main)


def test_instances_share_the_work(load, images, expected):
    async def main():
        async with load(instances=2, inputs=images[:1]) as model:
            scores = np.concatenate(await asyncio.gather(*one_by_one(model, images)))
            np.testing.assert_allclose(scores, expected, **CLOSE)
            assert sum(i.requests for i in model.stats().instances) == len(images)

    asyncio.run(main())


@only("takes_tokens")
def test_instances_at_work_are_no_more_than_the_processors(load, images, expected):
    """Runs take tokens of one budget: together, over any time, they can't have been in
    the backend for longer than its tokens."""

    async def main():
        tokens = 1
        async with load(inputs=images[:1]) as model:
            tokens = model.stats().cpu_total
        instances = 2 * tokens + 2
        async with load(instances=instances, inputs=images[:1]) as model:
            before, begun = sum(model.stats().busy), time.perf_counter()
            results = await asyncio.gather(
                *(model.infer(images) for _ in range(8 * instances))
            )
            seconds = time.perf_counter() - begun
            stats = model.stats()
            assert sum(stats.busy) - before <= seconds * tokens
            assert sum(instance.runs > 0 for instance in stats.instances) > tokens
        for scores in results:
            np.testing.assert_allclose(scores, expected, **CLOSE)

    asyncio.run(main())


def of_length(length, seed):
    chance = np.random.default_rng(seed)
    return chance.standard_normal((1, length, WIDTH), np.float32)


def first_output(result):
    return result["y"] if isinstance(result, dict) else result[0]


@only("any_length")
def test_requests_of_different_lengths_are_padded_into_shared_runs(load):

    async def main():
        pad = ml.Pad({"length": {"x": 1}}, mask="mask", mask_dtype="float32")
        batching = ml.Batching(max_rows=16, max_delay=FOR_EVER, pad=pad)
        async with load("running", batching=batching) as model:
            xs = [of_length(1 + n % 9, n) for n in range(64)]
            states = [np.full((1, WIDTH), n, np.float32) for n in range(64)]
            futures = [
                model.infer(x=x, state=s) for x, s in zip(xs, states, strict=True)
            ]
            # Lengths far apart don't share: the last runs aren't full.
            await model.close()
            for x, state, result in zip(
                xs, states, await asyncio.gather(*futures), strict=True
            ):
                np.testing.assert_allclose(
                    first_output(result), running(x, state), **CLOSE
                )
            stats = model.stats()
            assert stats.runs < 32
            assert stats.padding_cells > 0

    asyncio.run(main())


def test_sessions_share_runs_and_keep_their_states_apart(load):
    async def main():
        async with load("running", batching=ml.Batching(max_rows=8)) as model:
            mask = np.ones((1, LENGTH), np.float32)
            states = [np.full((1, WIDTH), n, np.float32) for n in range(12)]
            sessions = [model.session(state=state) for state in states]
            for turn in range(4):
                xs = [of_length(LENGTH, 100 * turn + n) for n in range(len(sessions))]
                ys = await asyncio.gather(
                    *(s.infer(x, mask) for s, x in zip(sessions, xs, strict=True))
                )
                for n, (x, y) in enumerate(zip(xs, ys, strict=True)):
                    own = running(x, states[n])
                    np.testing.assert_allclose(y, own, **CLOSE)
                    states[n] = np.tanh(own)
            assert model.stats().runs < 4 * len(sessions)
            for session in sessions:
                session.close()

    asyncio.run(main())


def test_cancelled_requests_leave_the_others_alone(run, load, images, expected):
    async def main():
        async with load() as model:
            futures = one_by_one(model, images)
            for future in futures[1::2]:
                future.cancel()
            results = await outcomes(futures)
            scores = np.concatenate(results[::2])
            np.testing.assert_allclose(scores, expected[::2], **CLOSE)
            for result in results[1::2]:
                assert isinstance(result, asyncio.CancelledError)
            stats = model.stats()
            assert stats.cancelled == len(images) // 2
            assert stats.failed == 0

    run(main)


def test_deadlines_pass_and_leave_the_others_alone(run, load, images, expected):
    async def main():
        async with load() as model:
            late = one_by_one(model, images[:20], timeout=0.0)
            kept = one_by_one(model, images, timeout=60.0)
            for result in await outcomes(late):
                assert isinstance(result, ml.DeadlineExceeded)
            scores = np.concatenate(await asyncio.gather(*kept))
            np.testing.assert_allclose(scores, expected, **CLOSE)
            assert model.stats().expired == len(late)

    run(main)


def test_under_load_some_give_up_some_expire_and_the_rest_is_right(
    load, images, expected
):
    async def main():
        async with load(batching=ml.Batching(max_rows=8), instances=2) as model:
            counts = {"served": 0, "cancelled": 0, "expired": 0}

            async def client(number):
                chance = random.Random(number)
                for _ in range(40):
                    i = chance.randrange(len(images))
                    timeout = chance.choice([None, None, 1e-3, 0.0])
                    future = model.infer(images[i : i + 1], timeout=timeout)
                    if chance.random() < 0.3:
                        await asyncio.sleep(0)
                        future.cancel()
                    try:
                        scores = await future
                    except asyncio.CancelledError:
                        counts["cancelled"] += 1
                    except ml.DeadlineExceeded:
                        counts["expired"] += 1
                    else:
                        counts["served"] += 1
                        np.testing.assert_allclose(scores[0], expected[i], **CLOSE)

            await asyncio.gather(*map(client, range(CLIENTS)))
            assert sum(counts.values()) == CLIENTS * 40
            assert min(counts.values()) > 0, counts
            assert model.health().ok
            await model.close()  # what ran for nobody any more has ended
            stats = model.stats()
            assert stats.failed == 0
            # Who gave up when the run had begun may be counted as completed, too.
            ended = stats.completed + stats.cancelled + stats.expired
            assert ended >= CLIENTS * 40
            assert stats.completed >= counts["served"]
            assert 0 < stats.cancelled <= counts["cancelled"]

    asyncio.run(main())


def test_a_reload_under_load_changes_the_weights_between_two_runs(
    run, backend, load, folder, images, expected, others
):
    async def main():
        async with load(batching=ml.Batching(max_rows=16)) as model:
            before = one_by_one(model, images)
            await model.reload(folder(backend) / "other")
            after = one_by_one(model, images)
            for futures, candidates in [
                (before, [expected, others]),
                (after, [others]),
            ]:
                scores = np.concatenate(await asyncio.gather(*futures))
                fits = [
                    np.isclose(scores, wanted, **CLOSE).all(axis=1)
                    for wanted in candidates
                ]
                assert np.logical_or.reduce(fits).all()
            assert model.stats().failed == 0

    run(main)


# --- what is wrong ---


def test_an_input_that_does_not_fit_is_an_error_of_that_request(load, images, expected):
    async def main():
        async with load() as model:
            for wrong in (images[:, :, 0, 0], images.astype(np.int64), "no image"):
                with pytest.raises((ml.Error, TypeError)):
                    await model.infer(wrong)
            scores = await model.infer(images)
            np.testing.assert_allclose(scores, expected, **CLOSE)

    asyncio.run(main())


def test_an_entry_that_is_not_there_is_a_load_error(load):
    async def main():
        with pytest.raises(ml.LoadError, match="nothing_of_the_kind"):
            await load(entry="nothing_of_the_kind")

    asyncio.run(main())


# --- all of them in one process ---


def test_all_backends_load_and_serve_side_by_side(run, folder, images, expected):
    async def main():
        loading = [
            ml.load(folder(backend) / "good", device=backend.device, instances=k)
            for k, backend in enumerate(INSTALLED + INSTALLED[::-1], 1)
        ]
        models = await asyncio.gather(*loading)
        everything = await asyncio.gather(
            *(asyncio.gather(*one_by_one(model, images)) for model in models)
        )
        for results in everything:
            np.testing.assert_allclose(np.concatenate(results), expected, **CLOSE)
        await asyncio.gather(*(model.close() for model in models))

    run(main)
