"""Execution providers, session options and chosen outputs: `load(options=…)`."""

from __future__ import annotations

import asyncio
import importlib.util

import numpy as np
import pytest

import pyasyncml as ml

onnx = pytest.importorskip("onnx")
# Not imported: no test here needs more than its library.
if importlib.util.find_spec("onnxruntime") is None:
    pytest.skip("onnxruntime is not installed", allow_module_level=True)

import onnx_models as models  # noqa: E402
from onnx_models import FLOAT, constant, node, tensor  # noqa: E402

CPU = "CPUExecutionProvider"
X = np.float32([[1, 2, 3, 4]])


def infer(path, options, x=X, **arguments):
    async def main():
        async with ml.load(path, options=options, **arguments) as model:
            return await model.infer(x)

    return asyncio.run(main())


@pytest.fixture
def path(tmp_path):
    """y = 2x"""
    return models.scale(tmp_path / "m.onnx", 2.0)


# --- providers ---


@pytest.mark.parametrize(
    "providers", [[CPU], (CPU,), [(CPU, {})], [[CPU, {}]]], ids=str
)
def test_providers_are_taken_as_onnxruntime_takes_them(path, providers):
    assert np.array_equal(infer(path, {"providers": providers}), 2 * X)


def test_a_provider_besides_the_cpu_is_appended_by_its_name(path):
    # The only other one in the ordinary wheel. It runs nodes of its own alone, and
    # leaves these to the CPU.
    azure = "AzureExecutionProvider"
    try:
        assert np.array_equal(infer(path, {"providers": [azure, CPU]}), 2 * X)
    except ml.LoadError as error:
        if f"no '{azure}'" in str(error):
            pytest.skip(str(error))
        raise


def test_a_provider_that_is_not_there_is_a_load_error_that_lists_those_that_are(path):
    with pytest.raises(ml.LoadError, match=f"no 'Nonesuch'; it has .*{CPU}"):
        infer(path, {"providers": ["Nonesuch", CPU]})


def test_providers_and_a_device_are_not_given_together(path):
    with pytest.raises(ValueError, match="providers: .*or device="):
        infer(path, {"providers": [CPU]}, device="cuda:0")


# --- session options ---


def ops(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def twice(tmp_path):
    """y = -(-x): what an optimizer finds."""
    return models.write(
        tmp_path / "twice.onnx",
        [node("Identity", ["x"], ["z"]), node("Neg", ["z"], ["y"])],
        [tensor("x", FLOAT, ["n", 4])],
        [tensor("y", FLOAT, ["n", 4])],
    )


@pytest.mark.parametrize(
    ("level", "left"),
    [
        ("disable", ["Identity", "Neg"]),
        ("basic", ["Neg"]),
        ("extended", ["Neg"]),
        ("all", ["Neg"]),
    ],
)
def test_the_level_of_optimization_shows_in_the_optimized_model(
    tmp_path, twice, level, left
):
    optimized = tmp_path / "optimized.onnx"
    options = {
        "graph_optimization_level": level,
        "optimized_model_filepath": optimized,
    }
    assert np.array_equal(infer(twice, options, instances=2), -X)
    assert ops(optimized) == left


def test_entries_of_the_configuration_have_their_effect(tmp_path, twice):
    # A file's name that doesn't say the format, and the entry that does.
    optimized = tmp_path / "optimized"
    options = {
        "optimized_model_filepath": str(optimized),
        "config": {"session.save_model_format": "ORT"},
    }
    assert np.array_equal(infer(twice, options), -X)
    assert optimized.read_bytes()[4:8] == b"ORTM"


@pytest.mark.parametrize("on", [True, False])
def test_memory_patterns_and_the_arena_are_switched(path, on):
    options = {"enable_mem_pattern": on, "enable_cpu_mem_arena": on}
    assert np.array_equal(infer(path, options, instances=2, threads=2), 2 * X)


# --- outputs ---


@pytest.fixture
def three(tmp_path):
    names = ["once", "twice", "thrice"]
    return models.write(
        tmp_path / "three.onnx",
        [node("Mul", ["x", f"by_{name}"], [name]) for name in names],
        [tensor("x", FLOAT, ["n", 4])],
        [tensor(name, FLOAT, ["n", 4]) for name in names],
        [constant(np.float32([k]), f"by_{name}") for k, name in enumerate(names, 1)],
    )


def test_outputs_come_in_the_order_of_their_names(three):
    async def main():
        async with ml.load(three) as model:
            names = [spec.name for spec in model.signature.outputs]
            assert names == ["once", "twice", "thrice"]
            named = dict(zip(names, await model.infer(X), strict=True))
            for k, name in enumerate(names, 1):
                assert np.array_equal(named[name], k * X)

    asyncio.run(main())


def test_chosen_outputs_come_alone_and_in_the_order_asked_for(three):
    async def main():
        options = {"outputs": ["thrice", "once"]}
        async with ml.load(three, options=options, batching=ml.Batching()) as model:
            names = [spec.name for spec in model.signature.outputs]
            assert names == ["thrice", "once"]
            for results in await asyncio.gather(*(model.infer(X) for _ in range(5))):
                thrice, once = results
                assert np.array_equal(thrice, 3 * X)
                assert np.array_equal(once, X)
            # A reload keeps the options.
            await model.reload(three)
            thrice, once = await model.infer(X)
            assert np.array_equal(thrice, 3 * X)

    asyncio.run(main())
    assert np.array_equal(infer(three, {"outputs": ("twice",)}), 2 * X)


def test_an_output_that_is_not_there_is_a_load_error_that_lists_those_that_are(three):
    with pytest.raises(
        ml.LoadError, match=r"outputs: no output 'fourth' \(once, twice, thrice\)"
    ):
        infer(three, {"outputs": ["once", "fourth"]})


# --- what is wrong ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nonesuch": 1}, ValueError, "no 'nonesuch'; it has .*providers.*outputs"),
        ({"providers": CPU}, TypeError, "providers: expected a sequence .*got str"),
        ({"providers": []}, ValueError, "providers: expected at least one"),
        ({"providers": [1]}, TypeError, "providers: expected a str, got int"),
        ({"providers": [(CPU, 1)]}, ValueError, "providers: expected a sequence"),
        ({"providers": [(CPU, {"a": 1})]}, ValueError, "providers: .*has no options"),
        ({"providers": [("A", {"a": []})]}, TypeError, "providers: A: .*got list"),
        ({"graph_optimization_level": 99}, TypeError, "level: expected a str, got int"),
        ({"graph_optimization_level": "most"}, ValueError, "'disable'.*got 'most'"),
        ({"enable_mem_pattern": 1}, TypeError, "enable_mem_pattern: expected a bool"),
        ({"enable_cpu_mem_arena": "1"}, TypeError, "arena: expected a bool, got str"),
        ({"optimized_model_filepath": 1}, TypeError, "filepath: expected a path"),
        ({"config": ["a"]}, TypeError, "config: expected a mapping"),
        ({"config": {"a": 1}}, TypeError, "config: expected a str, got int"),
        ({"config": {"a": "b\0c"}}, ValueError, "config: expected some text"),
        ({"outputs": "y"}, TypeError, "outputs: expected a sequence of names, got str"),
        ({"outputs": []}, ValueError, "outputs: expected names"),
        ({"outputs": ["y", "y"]}, ValueError, "outputs: expected names, each of them"),
    ],
)
def test_options_that_are_wrong_are_named(path, options, error, message):
    with pytest.raises(error, match=f"options: .*{message}"):
        infer(path, options)


def test_options_are_a_mapping_and_not_for_what_has_none(path):
    with pytest.raises(TypeError, match="options: expected a mapping, got list"):
        ml.load(path, options=["providers"])
    with pytest.raises(ValueError, match="options: a live module or callable has none"):
        ml.load(abs, options={"providers": [CPU]})
    assert np.array_equal(infer(path, {}), 2 * X)


@pytest.mark.torch
def test_a_backend_without_options_says_so(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "m.pt")
    with pytest.raises(ValueError, match="options: the torch backend has none"):
        infer(tmp_path / "m.pt", {"providers": [CPU]})
