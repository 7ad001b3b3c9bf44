"""What export.jax writes and refuses, and what load says of damaged bundles."""

from __future__ import annotations

import asyncio
import os
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from xla_programs import FEATURES, init_layers, jax, jnp, mlp

import pyasyncml as ml
from pyasyncml import export

pytestmark = pytest.mark.xla


def double(x):
    return 2 * x


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "bundle"
    export.jax(double, np.zeros((1, 3), np.float32), path, (1, 2))
    return path


def load_error(path, **options):
    async def main():
        with pytest.raises(ml.LoadError) as caught:
            await ml.load(path, **options)
        return str(caught.value)

    return asyncio.run(main())


def rewrite(path, change, *, drop=()):
    """The bundle with other members; its checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name not in drop:
                archive.writestr(name, content)
    Path(f"{path}.sha256").unlink(missing_ok=True)


def in_manifest(path, old, new):
    def change(members):
        assert old in members["manifest"]
        members["manifest"] = members["manifest"].replace(old, new)

    rewrite(path, change)


# --- what is written ---


def test_the_same_function_gives_the_same_file(tmp_path):
    x = np.zeros((1, 3), np.float32)
    first, second = tmp_path / "first", tmp_path / "second"
    export.jax(double, x, first, (1, 2))
    export.jax(double, x, second, (2, 1, 2))
    assert first.read_bytes() == second.read_bytes()
    digest = Path(f"{first}.sha256").read_text().split()[0]
    done = subprocess.run(
        ["sha256sum", first], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == digest


def test_weights_are_stored_once_and_aligned(tmp_path):
    layers = init_layers(0, FEATURES, 64, 4)
    x = jax.ShapeDtypeStruct((1, FEATURES), jnp.float32)
    path = tmp_path / "bundle"
    export.jax(mlp, x, path, (1, 2, 3, 4), weights=layers)
    with zipfile.ZipFile(path) as archive:
        held = [
            info for info in archive.infolist() if info.filename.startswith("weights/")
        ]
    assert len(held) == len(jax.tree.leaves(layers))
    content = path.read_bytes()
    for info in held:
        name, extra = struct.unpack("<HH", content[info.header_offset + 26 :][:4])
        assert (info.header_offset + 30 + name + extra) % 64 == 0


def test_inputs_keep_the_names_that_the_function_gives_them(tmp_path):
    def fn(weights, image, *rest, **options):
        return image + rest[0] + weights

    x = np.ones((2, 3), np.float32)
    path = tmp_path / "a name with spaces"
    export.jax(fn, (x, x), path, None, weights=np.float32(1), entry="été 1")

    async def main():
        async with ml.load(path, entry="été 1") as model:
            assert model.signature.entry == "été 1"
            names = [spec.name for spec in model.signature.inputs]
            return names, await model.infer(image=x, input1=x)

    names, y = asyncio.run(main())
    assert names == ["image", "input1"]
    np.testing.assert_array_equal(y, 2 * x + 1)


@pytest.mark.parametrize(
    ("fn", "inputs", "options", "error", "said"),
    [
        (double, "text", {}, TypeError, r"inputs\[0\]: expected an array, got str"),
        (double, np.float32(1), {}, ValueError, "no input has an axis"),
        (double, np.ones((1, 2), np.float32), {"batch_sizes": ()}, ValueError, "ints"),
        (
            double,
            np.ones((1, 2), np.float32),
            {"batch_sizes": (0,)},
            ValueError,
            "ints",
        ),
        (
            lambda x, y: x,
            (np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)),
            {},
            ValueError,
            r"inputs\[0\] has 1, inputs\[1\] has 3",
        ),
        (
            lambda x: x.sum(),
            np.ones((1, 2), np.float32),
            {},
            ValueError,
            "every output",
        ),
        (lambda x: x.T, np.ones((1, 2), np.float32), {}, ValueError, "every output"),
        (
            lambda x: x if x.sum() > 0 else -x,
            np.ones((1, 2), np.float32),
            {},
            ml.LoadError,
            "can't be traced by JAX",
        ),
        (lambda x: {1: x}, np.ones((1, 2), np.float32), {}, TypeError, "must be str"),
        (
            lambda s, x: (s, x),
            np.ones((1, 2), np.float32),
            {"state": np.float32(1)},
            ValueError,
            "batch_sizes=None",
        ),
        (
            lambda s, x: (s + x, x),
            np.ones((1, 2), np.float32),
            {"state": np.float32(1), "batch_sizes": None},
            ValueError,
            "new state must have",
        ),
        (
            lambda s, x: s + x,
            np.ones((1, 2), np.float32),
            {"state": np.float32(1), "batch_sizes": None},
            ValueError,
            "new state, outputs",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_at_export(
    tmp_path, fn, inputs, options, error, said
):
    with pytest.raises(error, match=said):
        export.jax(fn, inputs, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


# --- what is read ---


def test_a_flipped_bit_is_noticed_by_the_checksum_beside(bundle):
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    assert "the checksum doesn't match" in load_error(bundle)


def test_a_flipped_bit_in_any_member_is_noticed_without_one(tmp_path):
    path = tmp_path / "bundle"
    weight = np.arange(3, dtype=np.float32)
    export.jax(lambda w, x: w * x, weight, path, None, weights=weight)
    Path(f"{path}.sha256").unlink()
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    assert len(infos) == 4
    for info in infos:
        name, extra = struct.unpack("<HH", whole[info.header_offset + 26 :][:4])
        at = info.header_offset + 30 + name + extra + info.file_size // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        said = "Bad CRC-32" if info.filename == "held" else "checksum of a member"
        assert said in load_error(path)


def test_damaged_bundles_are_refused_or_right(tmp_path, bundle):
    """Cut off, and with bytes changed outside of what the archive's checksums cover."""
    whole = bundle.read_bytes()
    path = tmp_path / "damaged"
    chance = random.Random(7)
    x = np.ones((2, 3), np.float32)

    async def main():
        refused = 0
        for n in range(150):
            content = bytearray(whole)
            if n % 3 == 0:
                content = content[: chance.randrange(1, len(whole))]
            else:
                content[chance.randrange(len(content))] = chance.randrange(256)
            path.write_bytes(content)
            try:
                async with ml.load(path) as model:
                    np.testing.assert_array_equal(await model.infer(x), 2 * x)
            except ml.LoadError:
                refused += 1
        return refused

    assert asyncio.run(main()) > 75


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"pyasyncml-xla 1", b"pyasyncml-xla 2", "has format 2"),
        (b"pyasyncml-xla 1", b"pyasyncml-xla", "line 1 .*expected a number"),
        (b"entry forward", b"entry forw%zz", "percent-encoded"),
        (b"platform cpu", b"platform tpu", "exported for tpu, .*drives cpu"),
        (b"buckets 2 1 2", b"buckets 2 2 1", "line 4 .*within its bounds"),
        (b"buckets 2 1 2", b"buckets 9 1 2", "line 4 .*expected a number"),
        (b"buckets 2 1 2", b"buckets 2 1 3", "result 0 of its program isn't what"),
        (b"float32 1 2 -1 3", b"float99 1 2 -1 3", "expected a dtype"),
        (b"float32 1 2 -1 3", b"float32 1 99 -1 3", "within its bounds"),
        (b"float32 1 2 -1 3", b"float32 1 2 -1", "expected a number"),
        (b"float32 1 2 -1 3", b"float32 1 2 -1 9999999999999", "within its bounds"),
        (b"outputs\narray", b"outputs\ntuple 3\narray", "expected a structure"),
        (b"outputs\narray", b"outputs\ndict 1\narray", "expected key"),
        (b"outputs\narray float32 1 2 -1 3", b"outputs\nnone", "gives 1 arrays"),
        (
            b"outputs\narray float32 1 2 -1 3",
            b"outputs\narray float32 1 2 -1 4",
            "result 0 of its program isn't what",
        ),
        (
            b"outputs\narray float32",
            b"outputs\narray int32",
            "result 0 of its program isn't what",
        ),
        (b"inputs 1", b"inputs 1000000", "within its bounds|expected"),
        (b"state\nnone", b"state\n" + b"tuple 1\n" * 40 + b"none", "a structure"),
    ],
)
def test_a_manifest_that_is_wrong_says_what_was_expected(bundle, old, new, said):
    in_manifest(bundle, old, new)
    assert re.search(said, load_error(bundle))


def test_a_program_that_does_not_compile_says_so(bundle):
    rewrite(bundle, lambda members: members.update({"programs/1": b"no program"}))
    assert "XLA can't compile the program" in load_error(bundle)


def test_a_missing_member_is_named(bundle):
    rewrite(bundle, lambda members: None, drop=["programs/1"])
    assert "has no member programs/1" in load_error(bundle)


def test_a_compressed_member_is_refused(bundle):
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    Path(f"{bundle}.sha256").unlink()
    assert "a member is compressed" in load_error(bundle)


def test_another_entry_than_the_bundles_is_refused(bundle):
    assert "no entry 'backward'; there is 'forward'" in load_error(
        bundle, entry="backward"
    )


# --- plugins ---


def in_process(program, **environment):
    """What a program says in a process of its own."""
    names = ("PYASYNCML_XLA_OPTIONS", "PYASYNCML_XLA_PLATFORM")
    names += ("PJRT_NAMES_AND_LIBRARY_PATHS", "TF_CPP_MIN_LOG_LEVEL")
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**inherited, **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


LIST = (
    "import pyasyncml as ml\n"
    "for d in ml.devices():\n"
    "    if d.backend == 'xla': print(d.device, d.available, d.reason)"
)


def test_one_cpu_device_unless_more_are_asked_for():
    assert in_process(LIST) == "xla:0 True \n"
    listed = in_process(LIST, PYASYNCML_XLA_OPTIONS="cpu_device_count=3")
    assert listed.splitlines() == [f"xla:{n} True " for n in range(3)]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PYASYNCML_XLA_PLATFORM": "tpu"}, "none is installed for 'tpu'"),
        ({"PYASYNCML_XLA_PLATFORM": "tpu"}, "pip install 'pyasyncml[xla]'"),
        ({"PJRT_NAMES_AND_LIBRARY_PATHS": "nothing"}, "expected name:path"),
        ({"PJRT_NAMES_AND_LIBRARY_PATHS": "x:/none.so"}, "doesn't load: /none.so"),
        ({"PJRT_NAMES_AND_LIBRARY_PATHS": "x:libm.so.6"}, "is no PJRT plugin"),
        ({"PYASYNCML_XLA_OPTIONS": "cpu_device_count"}, "expected name=value"),
        ({"PYASYNCML_XLA_OPTIONS": "unknown=1"}, "can't be used here: "),
        ({"PYASYNCML_XLA_OPTIONS": "cpu_device_count=many"}, "can't be used here: "),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(environment, said):
    listed = in_process(LIST, **environment)
    assert listed.startswith(" False ")
    assert said in listed


def test_the_plugin_named_by_the_environment_is_taken():
    program = (
        "from pyasyncml.backends import xla\n"
        "[(name, path)] = xla._plugins()\n"
        "print(name, path)"
    )
    name, path = in_process(program).split()
    assert name == "cpu"
    assert in_process(LIST, PJRT_NAMES_AND_LIBRARY_PATHS=f"mine:{path}") != ""
