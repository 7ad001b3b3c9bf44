"""What `load` says of files and arguments that it can't use. Needs no framework: it is
found out before one is loaded."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import pytest

import pyasyncml as ml


def load_error(run, *args, **kwargs):
    """The message of the LoadError that the awaiting task gets."""

    async def main():
        loading = ml.load(*args, **kwargs)  # never raises here: nothing was read yet
        with pytest.raises(ml.LoadError) as caught:
            await loading
        with pytest.raises(ml.LoadError):
            async with ml.load(*args, **kwargs):
                pass
        return str(caught.value)

    return run(main)


def archive(path, *members):
    with zipfile.ZipFile(path, "w") as file:
        for member in members:
            file.writestr(member, b"content of " + member.encode())
    return path


def test_missing_file(run, tmp_path):
    path = tmp_path / "none.pt"
    assert load_error(run, path) == f"{path}: no such file"


@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_path_of_any_type_is_taken(run, tmp_path, kind):
    class Path:
        def __fspath__(self):
            return path

    path = kind(tmp_path / "none.pt") if kind is not os.fsencode else b"/none.pt"
    source = Path() if isinstance(path, bytes) else path
    assert load_error(run, source).endswith("none.pt: no such file")


def test_empty_file(run, tmp_path):
    path = tmp_path / "empty.pt"
    path.touch()
    assert load_error(run, path) == f"{path}: the file is empty"


def test_folder(run, tmp_path):
    assert "is a folder" in load_error(run, tmp_path)


def test_file_that_may_not_be_read(run, tmp_path):
    path = tmp_path / "loop.pt"
    path.symlink_to(path)  # root may read all else
    assert "symbolic links" in load_error(run, path)


def test_file_below_a_file(run, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert "Not a directory" in load_error(run, tmp_path / "file" / "model.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"not a model at all",
        b"\x7fELF" + bytes(100),
        bytes(1000),
        b"PK",
        b"PK\x05",
    ],
)
def test_foreign_file(run, tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    message = load_error(run, path)
    assert "holds no format that is known" in message
    assert "TorchScript" in message


def test_pickle(run, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    assert "holds a pickle" in load_error(run, path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_truncated_archive(run, tmp_path, keep):
    path = archive(tmp_path / "model.pt", "model/code/a.py", "model/data.pkl")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "is a damaged or truncated archive" in load_error(run, path)


def test_pickled_weights_are_told_from_a_program(run, tmp_path):
    path = archive(tmp_path / "model.pt", "model/data.pkl", "model/data/0")
    message = load_error(run, path)
    assert "holds pickled weights (torch.save), not a program" in message
    assert "torch.jit.script" in message


@pytest.mark.torch
@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("m/models/model.json", "is no program that this torch reads"),
        ("m/data/aotinductor/model/x", "has no description of what it was compiled"),
    ],
)
def test_empty_programs_of_torch_export_are_told_as_such(run, tmp_path, member, says):
    pytest.importorskip("torch")
    path = archive(tmp_path / "model.pt2", member)
    assert says in load_error(run, path)


def test_any_other_archive(run, tmp_path):
    path = archive(tmp_path / "model.zip", "readme.txt")
    assert "is a zip archive, but no TorchScript archive" in load_error(run, path)


# --- checksums ---


@pytest.fixture
def model(tmp_path):
    """A file whose content is looked at only once its checksum is right."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"content")
    return path


RIGHT = hashlib.sha256(b"content").hexdigest()
WRONG = hashlib.sha256(b"something else").hexdigest()
PASSED = "holds no format that is known"


def test_checksum_that_matches_passes(run, model):
    assert PASSED in load_error(run, model, sha256=RIGHT)
    assert PASSED in load_error(run, model, sha256=RIGHT.upper())


def test_checksum_that_differs_is_refused_with_both(run, model):
    message = load_error(run, model, sha256=WRONG)
    assert "the checksum doesn't match sha256=" in message
    assert WRONG in message
    assert RIGHT in message


@pytest.mark.parametrize("text", ["", "abc", "x" * 64, RIGHT + "0"])
def test_checksum_that_is_none_is_refused(run, model, text):
    assert "expected 64 hexadecimal digits" in load_error(run, model, sha256=text)


@pytest.mark.parametrize("text", ["{}", "{}\n", "{}  model.pt\n", "  {} *model.pt"])
def test_checksum_in_a_file_beside_is_verified(run, model, text):
    beside = Path(f"{model}.sha256")
    beside.write_text(text.format(RIGHT))
    assert PASSED in load_error(run, model)
    beside.write_text(text.format(WRONG))
    message = load_error(run, model)
    assert "the checksum doesn't match" in message
    assert str(beside) in message


@pytest.mark.parametrize("text", ["", "\n \n", "no checksum", "\x00\xff"])
def test_file_beside_without_a_checksum_is_refused_not_ignored(run, model, text):
    Path(f"{model}.sha256").write_text(text, encoding="latin-1")
    message = load_error(run, model)
    assert ".sha256" in message
    assert PASSED not in message


def test_checksum_that_is_given_goes_before_the_file_beside(run, model):
    Path(f"{model}.sha256").write_text(WRONG)
    assert PASSED in load_error(run, model, sha256=RIGHT)


# --- arguments ---


@pytest.mark.parametrize("source", [None, 1, [], {}, object()])
def test_source_of_another_kind_is_a_type_error_at_the_call(source):
    with pytest.raises(TypeError, match="^source: expected a path"):
        ml.load(source)


@pytest.mark.parametrize("name", ["instances", "threads"])
def test_counts_are_checked_at_the_call(name):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"^{name}: expected 1 or more"):
            ml.load("model.pt", **{name: wrong})
    for wrong in (None, 1.0, "1", True):
        with pytest.raises(TypeError, match=f"^{name}: expected an int"):
            ml.load("model.pt", **{name: wrong})


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cpu:0:0", "CPU", []])
def test_device_that_is_none_is_a_value_error_at_the_call(device):
    with pytest.raises(ValueError, match="^device: expected"):
        ml.load("model.pt", device=device)


@pytest.mark.parametrize("device", [[None], [1], None, 0])
def test_device_of_another_type_is_a_type_error_at_the_call(device):
    with pytest.raises(TypeError, match="^device: expected a str"):
        ml.load("model.pt", device=device)


@pytest.mark.parametrize("queue", [5, "reject", {"max_rows": 5}])
def test_queue_of_another_type_is_a_type_error_at_the_call(queue):
    with pytest.raises(TypeError, match="^queue: expected a Queue"):
        ml.load("model.pt", queue=queue)


def test_live_callable_has_no_checksum_no_other_backend_and_only_its_methods():
    with pytest.raises(TypeError, match="^sha256: only a file has a checksum"):
        ml.load(int, sha256=RIGHT)
    with pytest.raises(ValueError, match="^backend: a live module runs on 'torch' or"):
        ml.load(int, backend="onnxruntime")
    with pytest.raises(ValueError, match="^backend: 'torch' exports a torch.nn.Module"):
        ml.load(int, backend="torch")
    with pytest.raises(ValueError, match="^entry: type has no method 'nonsense'"):
        ml.load(int, entry="nonsense")


def test_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match="nonsense"):
        ml.load("model.pt", nonsense=1)


@pytest.mark.parametrize("backend", ["theano", "", "python"])
def test_backend_that_reads_no_files_is_a_load_error(run, model, backend):
    assert "there is no such backend for files" in load_error(
        run, model, backend=backend
    )


def test_loading_nobody_awaits_reads_nothing_and_says_nothing(tmp_path):
    ml.load(tmp_path / "none.pt")


def test_loading_may_be_awaited_twice_for_two_models(run):
    async def main():
        loading = ml.load(int)
        first, second = await loading, await loading
        assert first is not second
        await first.close()
        await second.close()

    run(main)


@pytest.mark.parametrize("name", ["infer", "session", "close", "stats", "signature"])
def test_model_that_was_not_awaited_says_so(name):
    loading = ml.load(abs)
    with pytest.raises(AttributeError, match="await it first .*async with") as error:
        getattr(loading, name)
    assert f"'{name}' is the model's" in str(error.value)
    assert not hasattr(loading, "no_such_thing")
