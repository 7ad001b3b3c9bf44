"""What every backend for files does alike: one body of tests, and one net for all, the
digits' of the demo, trained once and exported for each of them.

A backend joins by an entry in BACKENDS: the package that must be there, and a function
that writes the net to a path.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import FOR_EVER, outcomes

import pyasyncml as ml

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from pyasyncml.demo import digits  # noqa: E402

pytestmark = pytest.mark.torch

CLOSE = 1e-5


@dataclass(frozen=True)
class Net:
    """A torch module, and the weights as arrays, convolutions first."""

    module: Any

    @property
    def weights(self) -> list[np.ndarray]:
        return [p.detach().numpy() for p in self.module.parameters()]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.module(torch.from_numpy(images.copy())).numpy()


def write_torchscript(net: Net, path: Path) -> None:
    torch.jit.script(net.module).save(str(path))


def write_onnx(net: Net, path: Path) -> None:
    import onnx_models

    onnx_models.digits(path, net.weights)


def write_saved_model(net: Net, path: Path) -> None:
    import saved_models

    saved_models.digits(path, net.weights)


@dataclass(frozen=True)
class Backend:
    name: str  # as in Stats.backend
    packages: tuple[str, ...]
    write: Callable[[Net, Path], None]

    def missing(self) -> list[str]:
        return [name for name in self.packages if not importlib.util.find_spec(name)]


BACKENDS = {
    backend.name: backend
    for backend in [
        Backend("torch", ("torch",), write_torchscript),
        Backend("onnxruntime", ("onnxruntime", "onnx"), write_onnx),
        Backend("tensorflow", ("tensorflow",), write_saved_model),
    ]
}
INSTALLED = [backend for backend in BACKENDS.values() if not backend.missing()]


@pytest.fixture(scope="module")
def data() -> Any:
    return digits.load_data()


@pytest.fixture(scope="module")
def images(data: Any) -> np.ndarray:
    """float32 [450, 1, 8, 8], none of which was trained on."""
    return data.test_images.numpy()


@pytest.fixture(scope="module")
def nets(data: Any) -> tuple[Net, Net]:
    """A net that is trained, and one that was for a moment only."""
    trained = (asyncio.run(digits.train(data, epochs=n)) for n in (20, 1))
    good, other = (Net(found.net) for found in trained)
    return good, other


@pytest.fixture(scope="module")
def write(nets: tuple[Net, Net], tmp_path_factory: Any) -> Callable[..., Path]:
    """The path of one of the nets' export, written when it is first asked for."""
    folder = tmp_path_factory.mktemp("nets")

    def written(backend: Backend, which: int = 0) -> Path:
        path = folder / f"{backend.name}-{which}"
        if not path.exists():
            backend.write(nets[which], path)
        return path

    return written


@pytest.fixture(params=BACKENDS.values(), ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    if missing := request.param.missing():
        pytest.skip(f"{', '.join(missing)} is not installed")
    return request.param


@pytest.fixture
def path(backend: Backend, write: Callable[..., Path]) -> Path:
    return write(backend)


# --- results ---


def test_outputs_are_the_nets_and_accurate(run, backend, path, nets, images, data):
    async def main():
        async with ml.load(path) as model:
            assert model.stats().backend == backend.name
            scores = await model.infer(images)
            np.testing.assert_allclose(scores, nets[0](images), atol=CLOSE, rtol=CLOSE)
            accuracy = (scores.argmax(1) == data.test_labels.numpy()).mean()
            assert accuracy >= 0.95

    run(main)


def test_numpy_gives_numpy_and_torch_gives_torch(path, nets, images):
    async def main():
        async with ml.load(path) as model:
            for kind, x in [
                (np.ndarray, images[:3]),
                (np.ndarray, images[::-7]),
                (torch.Tensor, torch.from_numpy(images[:3].copy())),
            ]:
                scores = await model.infer(x)
                assert type(scores) is kind
                np.testing.assert_allclose(
                    scores, nets[0](np.asarray(x)), atol=CLOSE, rtol=CLOSE
                )

    asyncio.run(main())


def test_results_outlive_the_model(path, nets, images):
    async def main():
        async with ml.load(path) as model:
            return await asyncio.gather(
                *(model.infer(images[i : i + 1]) for i in (0, 1))
            )

    first, second = asyncio.run(main())
    first[:] = 0  # and are the caller's own
    np.testing.assert_allclose(second, nets[0](images[1:2]), atol=CLOSE, rtol=CLOSE)


# --- the scheduler ---


def one_by_one(model, images, **options):
    return [model.infer(images[i : i + 1], **options) for i in range(len(images))]


def test_requests_share_runs(run, path, nets, images):
    async def main():
        batching = ml.Batching(max_rows=32, max_delay=FOR_EVER)
        async with ml.load(path, batching=batching) as model:
            some = images[: 14 * 32]
            results = await asyncio.gather(*one_by_one(model, some))
            scores = np.concatenate(results)
            np.testing.assert_allclose(scores, nets[0](some), atol=CLOSE, rtol=CLOSE)
            assert model.stats().runs == 14
            # A request of more rows than a run may have is cut.
            scores = await model.infer(images)
            np.testing.assert_allclose(scores, nets[0](images), atol=CLOSE, rtol=CLOSE)

    run(main)


def test_instances_share_the_work(path, nets, images):
    async def main():
        async with ml.load(path, instances=2, inputs=images[:1]) as model:
            scores = np.concatenate(await asyncio.gather(*one_by_one(model, images)))
            np.testing.assert_allclose(scores, nets[0](images), atol=CLOSE, rtol=CLOSE)

    asyncio.run(main())


def test_cancelled_requests_leave_the_others_alone(run, path, nets, images):
    async def main():
        async with ml.load(path) as model:
            futures = one_by_one(model, images)
            for future in futures[1::2]:
                future.cancel()
            results = await outcomes(futures)
            for i in range(0, len(images), 2):
                expected = nets[0](images[i : i + 1])
                np.testing.assert_allclose(results[i], expected, atol=CLOSE, rtol=CLOSE)
            for result in results[1::2]:
                assert isinstance(result, asyncio.CancelledError)
            stats = model.stats()
            assert stats.cancelled == len(images) // 2
            assert stats.failed == 0

    run(main)


def test_deadlines_pass_and_leave_the_others_alone(run, path, nets, images):
    async def main():
        async with ml.load(path) as model:
            late = one_by_one(model, images[:20], timeout=0.0)
            kept = one_by_one(model, images, timeout=60.0)
            for result in await outcomes(late):
                assert isinstance(result, ml.DeadlineExceeded)
            scores = np.concatenate(await asyncio.gather(*kept))
            np.testing.assert_allclose(scores, nets[0](images), atol=CLOSE, rtol=CLOSE)
            assert model.stats().expired == len(late)

    run(main)


def test_a_reload_changes_the_weights_between_two_runs(
    run, backend, path, write, nets, images
):
    async def main():
        async with ml.load(path, batching=ml.Batching(max_rows=16)) as model:
            before = one_by_one(model, images)
            await model.reload(write(backend, 1))
            after = one_by_one(model, images)
            for futures, candidates in [(before, nets), (after, nets[1:])]:
                scores = np.concatenate(await asyncio.gather(*futures))
                fits = [
                    np.isclose(scores, net(images), atol=CLOSE, rtol=CLOSE).all(axis=1)
                    for net in candidates
                ]
                assert np.logical_or.reduce(fits).all()
            assert model.stats().failed == 0

    run(main)


# --- what is wrong ---


def test_an_input_that_does_not_fit_is_an_error_of_that_request(path, nets, images):
    async def main():
        async with ml.load(path) as model:
            for wrong in (images[:, :, 0, 0], images.astype(np.int64), "no image"):
                with pytest.raises((ml.Error, TypeError)):
                    await model.infer(wrong)
            scores = await model.infer(images)
            np.testing.assert_allclose(scores, nets[0](images), atol=CLOSE, rtol=CLOSE)

    asyncio.run(main())


def test_an_entry_that_is_not_there_is_a_load_error(path):
    async def main():
        with pytest.raises(ml.LoadError, match="nothing_of_the_kind"):
            await ml.load(path, entry="nothing_of_the_kind")

    asyncio.run(main())


# --- all of them in one process ---


def test_all_backends_load_and_serve_side_by_side(run, write, nets, images):
    async def main():
        loading = [
            ml.load(write(backend), instances=k)
            for k, backend in enumerate(INSTALLED + INSTALLED[::-1], 1)
        ]
        models = await asyncio.gather(*loading)
        expected = nets[0](images)
        everything = await asyncio.gather(
            *(asyncio.gather(*one_by_one(model, images)) for model in models)
        )
        for results in everything:
            np.testing.assert_allclose(
                np.concatenate(results), expected, atol=CLOSE, rtol=CLOSE
            )
        await asyncio.gather(*(model.close() for model in models))

    run(main)
