"""What the tests of the xla backend export: functions, and their bundles."""

from __future__ import annotations

import os

import pytest

# The client is made once a process: as many devices as any test needs.
os.environ.setdefault("PYASYNCML_XLA_OPTIONS", "cpu_device_count=4")

jax = pytest.importorskip("jax")
jnp = jax.numpy

FEATURES = 16


def init_layers(seed, *sizes):
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {"w": jax.random.normal(key, (n, m)) * n**-0.5, "b": jnp.zeros(m)}
        for key, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]


def mlp(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def cross_entropy(layers, x, y):
    chosen = jax.nn.log_softmax(mlp(layers, x)) * jax.nn.one_hot(y, 4)
    return -chosen.sum(1).mean()


def adam_state(layers):
    zeros = jax.tree.map(jnp.zeros_like, layers)
    return {"layers": layers, "m": zeros, "v": zeros, "t": jnp.zeros((), jnp.int32)}


def adam_step(state, x, y, rate):
    """Adam, Kingma and Ba 2015, algorithm 1."""
    t = state["t"] + 1
    loss, gradient = jax.value_and_grad(cross_entropy)(state["layers"], x, y)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["m"], gradient)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["v"], gradient)

    def moved(layer, m, v):
        return layer - rate * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)

    layers = jax.tree.map(moved, state["layers"], m, v)
    return {"layers": layers, "m": m, "v": v, "t": t}, {"loss": loss}


without_asan = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="AddressSanitizer ends the process for an allocation as large as that",
)


def endless(x):
    """Needs more memory than a process can address."""
    many = jnp.broadcast_to(x, (1 << 24, 1 << 22))
    return jnp.sort(many * jax.lax.iota(jnp.float32, 1 << 22), axis=1)[0, 0]
