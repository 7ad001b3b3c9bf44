"""A Keras model or a `tf.Module` with its optimizer as one SavedModel."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from .._files import checksum
from ..errors import LoadError


def export_saved_model(
    model: Any, path: str, inputs: Any, loss: Any, optimizer: Any
) -> None:
    """See `pyasyncml.export.tensorflow`."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise LoadError(
            f"exporting a SavedModel needs TensorFlow ({error}): "
            "pip install 'pyasyncml[tensorflow]'"
        ) from error
    if (loss is None) != (optimizer is None):
        raise ValueError("loss and optimizer: expected both, or neither")
    if not callable(model):
        raise TypeError(
            "model: expected a Keras model or a tf.Module that can be called, got "
            f"{type(model).__name__}"
        )
    examples = inputs if isinstance(inputs, tuple) else (inputs,)
    if not examples or (loss is not None and len(examples) < 2):
        raise ValueError(
            "inputs: expected the model's inputs"
            + (" and, last, the target" if loss is not None else "")
        )
    specs = _specs(tf, examples, has_target=loss is not None)
    if loss is not None:
        loss, optimizer = _loss(loss), _optimizer(optimizer)
    try:
        program = _Program(tf, model, specs if loss is None else specs[:-1])
        if loss is not None:
            program.train(tf, specs, loss, optimizer)
        _write(tf, program.module, program.signatures, path)
    except (OSError, LoadError):
        raise
    except Exception as error:
        raise LoadError(
            f"{type(model).__name__} can't be exported: {type(error).__name__}: {error}"
        ) from error


def _specs(tf: Any, examples: tuple[Any, ...], has_target: bool) -> list[Any]:
    """Of each example its spec, or of a dict a dict of them."""
    count = len(examples) - has_target
    names = ["x"] if count == 1 else [f"x{i}" for i in range(count)]
    specs: list[Any] = []
    for example, name in zip(examples, [*names, "y"][: len(examples)], strict=True):
        if not isinstance(example, dict):
            specs.append(_spec(tf, example, name))
        elif not example or not all(isinstance(key, str) for key in example):
            raise TypeError("inputs: expected a dict of inputs by name, str")
        else:
            specs.append(
                {
                    key: tf.TensorSpec.from_spec(_spec(tf, value, key), name=key)
                    for key, value in example.items()
                }
            )
    if len({spec.name for spec in _flat(specs)}) < len(_flat(specs)):
        raise ValueError("inputs: two of the specs have one name")
    return specs


def _spec(tf: Any, example: Any, name: str) -> Any:
    if isinstance(example, tf.TensorSpec):
        return tf.TensorSpec(example.shape, example.dtype, example.name or name)
    try:
        tensor = tf.convert_to_tensor(example)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"inputs: an example can't be made a tensor: {error}"
        ) from error
    shape = tensor.shape.as_list()
    return tf.TensorSpec([None, *shape[1:]] if shape else [], tensor.dtype, name)


def _flat(items: Iterable[Any]) -> list[Any]:
    """As a signature has them: dicts' values one by one."""
    return [
        each
        for item in items
        for each in (item.values() if isinstance(item, dict) else (item,))
    ]


def _grouped(flat: Iterable[Any], specs: list[Any]) -> list[Any]:
    """As the model takes them: dicts where the specs have dicts."""
    rest = iter(flat)
    return [
        {key: next(rest) for key in spec} if isinstance(spec, dict) else next(rest)
        for spec in specs
    ]


def _loss(loss: Any) -> Callable[[Any, Any], Any]:
    if isinstance(loss, str):
        import keras

        loss = keras.losses.get(loss)
    if not callable(loss):
        raise TypeError(
            "loss: expected a Keras loss, its name or a function of (target, output), "
            f"got {type(loss).__name__}"
        )
    return loss  # type: ignore[no-any-return]


def _optimizer(optimizer: Any) -> Any:
    import keras

    if isinstance(optimizer, (str, dict)):
        optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "optimizer: expected a Keras optimizer or the name of one, got "
            f"{type(optimizer).__name__}"
        )
    return optimizer


class _Program:
    """What is saved: functions, and the variables that they use."""

    def __init__(self, tf: Any, model: Any, specs: list[Any]) -> None:
        self.module = tf.Module()
        self._model = model
        self._is_keras = _is_keras(model)
        flat = _flat(specs)
        if self._is_keras and not model.built:
            zeros = [tf.zeros([size or 1 for size in s.shape], s.dtype) for s in flat]
            model(*_grouped(zeros, specs))

        def predict(*inputs: Any) -> Any:
            return _named(self._call(_grouped(inputs, specs), training=False))

        def weights() -> dict[str, Any]:
            return {name: tf.identity(v) for name, v in self.module.weights.items()}

        function = functools.partial(tf.function, autograph=False)
        # Traced before the variables are looked for: a module may make its own then.
        self.module.predict = function(predict)
        predicted = self.module.predict.get_concrete_function(*flat)
        # Keras's own variables aren't found by the saver: what they hold is.
        self.module.weights = _by_name(model.variables)
        self.signatures = {"serving_default": predicted, "predict": predicted}
        if self.module.weights:
            self.module.read_weights = function(weights)
            read = self.module.read_weights.get_concrete_function()
            self.signatures["weights"] = read

    def _call(self, inputs: list[Any], training: bool) -> Any:
        if not self._is_keras:
            return self._model(*inputs)
        # A functional model takes several inputs as a list.
        several = (
            len(inputs) > 1 and len(getattr(self._model, "inputs", None) or ()) > 1
        )
        if several:
            return self._model(inputs, training=training)
        return self._model(*inputs, training=training)

    def train(
        self,
        tf: Any,
        specs: list[Any],
        loss: Callable[[Any, Any], Any],
        optimizer: Any,
    ) -> None:
        variables = list(self._model.trainable_variables)
        if not variables:
            raise ValueError("the model has no trainable variables")
        optimizer.build(variables)

        def train_step(*batch: Any) -> dict[str, Any]:
            *inputs, target = _grouped(batch, specs)
            with tf.GradientTape() as tape:
                output = self._call(inputs, training=True)
                value = tf.reduce_mean(loss(target, output))
                if self._is_keras and self._model.losses:
                    value += tf.add_n(self._model.losses)
            gradients = tape.gradient(value, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return {"loss": value}

        self.module.optimizer_state = _by_name(optimizer.variables)
        self.module.train_step = tf.function(train_step, autograph=False)
        traced = self.module.train_step.get_concrete_function(*_flat(specs))
        self.signatures["train_step"] = traced


def _is_keras(model: Any) -> bool:
    try:
        import keras
    except ImportError:
        return False
    if not isinstance(model, keras.Layer):
        return False
    if keras.backend.backend() != "tensorflow":
        raise LoadError(
            f"Keras runs on {keras.backend.backend()} here: a SavedModel can be made "
            "where KERAS_BACKEND is tensorflow"
        )
    return True


def _by_name(variables: Iterable[Any]) -> dict[str, Any]:
    """TensorFlow's variables by their paths, made unique."""
    found: dict[str, Any] = {}
    for variable in variables:
        raw = getattr(variable, "value", variable)
        if callable(raw):  # a tf.Variable has a method of that name
            raw = variable
        name = str(getattr(variable, "path", None) or variable.name).split(":")[0]
        unique, count = name, 1
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found[unique] = raw
    return found


def _named(output: Any) -> Any:
    """As signatures want it: a dict of tensors."""
    if isinstance(output, dict):
        return output
    outputs = output if isinstance(output, (list, tuple)) else [output]
    return {f"output_{i}": each for i, each in enumerate(outputs)}


def _write(tf: Any, module: Any, signatures: dict[str, Any], path: str) -> None:
    path = path.rstrip("/")
    parent = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as folder:
        made = os.path.join(folder, "made")
        tf.saved_model.save(module, made, signatures=signatures)
        digest = checksum(made)
        beside = os.path.join(folder, "sha256")
        with open(beside, "w", encoding="ascii") as file:
            file.write(f"{digest}  {os.path.basename(path)}\n")
        if os.path.isdir(path):
            if not os.path.isfile(os.path.join(path, "saved_model.pb")):
                raise FileExistsError(f"{path}: is a folder, and no SavedModel")
            # A name for it that the folder's end takes along.
            os.rename(path, os.path.join(folder, "old"))
        os.rename(made, path)
        shutil.move(beside, path + ".sha256")
