"""Builds the extension with ASan and UBSan and runs the whole test suite under them.

The build stands apart, in build/sanitize: a copy of the sources with the sanitized
extension in place, run by the project's own environment. Interpreter and frameworks
are not sanitized, so the runtime is preloaded. They also leak by the sanitizer's
reckoning; of the leaks that it reports, those count that were allocated by the
project's code, by the address of the call. (References that are lost leak objects of
the interpreter's, whose stacks don't reach so far: the tests' own fixture counts them.)
Any other report stops the process that it concerns, and fails the run. The benchmarks'
tests are left out: they measure, and what they load has tests of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import shards

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "sanitize" / "tree"
REPORTS = ROOT / "build" / "sanitize" / "reports"
COPIED = (
    "csrc",
    "pyasyncml",
    "tests",
    "examples",
    "docs",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
NOT_COPIED = ("*.so", "__pycache__", "_csrc", "build")
# Frames from the allocator within which code of ours makes a leak ours.
NEAR = 8


def copy_sources() -> None:
    """Brings the copy up to date; unchanged files keep their times, so that only what
    changed is compiled again."""
    wanted = set()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns(*NOT_COPIED)
            shutil.copytree(source, TREE / name, ignore=ignored, dirs_exist_ok=True)
            wanted |= {path.relative_to(ROOT) for path in source.rglob("*")}
        else:
            TREE.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, TREE / name)
    for name in COPIED:
        for path in (TREE / name).rglob("*"):
            stale = path.relative_to(TREE) not in wanted
            if stale and path.suffix in {".c", ".h", ".cpp", ".py", ".pyi", ".ipynb"}:
                path.unlink()


def build(environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=TREE,
        env=environment | {"PYASYNCML_SANITIZE": "address,undefined"},
        check=True,
    )


def runtime(name: str) -> str:
    """Where the compiler keeps a library of its own."""
    command = [os.environ.get("CC", "gcc"), f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def sanitized(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a process that runs the sanitized extension."""
    # libstdc++ too: ASan looks for __cxa_throw when it starts, before torch is there.
    preload = [runtime("libasan.so"), runtime("libubsan.so"), runtime("libstdc++.so")]
    log = f"log_path={REPORTS / 'report'}"
    return environment | {
        "LD_PRELOAD": " ".join(preload),
        # The reports decide, not the exit status: interpreter, frameworks and the
        # compilers that tests start leak too.
        "ASAN_OPTIONS": f"exitcode=0:detect_leaks=1:{log}",
        # The leak checker now and then crashes reading the thread-local storage of
        # frameworks' threads.
        "LSAN_OPTIONS": "use_tls=0",
        # Ends the process with status 1, and writes to stderr wherever logs go.
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        # So that ASan sees each of the interpreter's blocks.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(TREE),
        "PYASYNCML_TEST_BUILDS": str(ROOT / "build"),
        "PYASYNCML_TESTS_BRIEF": "1",
    }


def check_it_is_the_one(environment: dict[str, str]) -> None:
    """Fails unless the copy's extension is what gets imported, with ASan in it."""
    script = "from pyasyncml import _core; print(_core.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=TREE,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    extension = Path(found.stdout.strip())
    if TREE not in extension.parents:
        sys.exit(f"not the sanitized build: {extension}")
    if b"__asan_init" not in extension.read_bytes():
        sys.exit(f"built without ASan: {extension}")


def our_leaks(report: str) -> Iterator[str]:
    """The leaks in a report that were allocated by the project's code."""
    for block in re.split(r"\n\s*\n", report):
        frames = re.findall(r"^\s+#\d+ .*$", block, re.MULTILINE)
        near = "\n".join(frames[:NEAR])
        ours = re.search(r"csrc/|pyasyncml/[^\s(]*\.so", near)
        if re.search(r"#[12] .* elf/dl-", near):
            continue  # the loader's own, whose callers aren't found reliably
        if re.search(r"^(Direct|Indirect) leak of", block, re.MULTILINE) and ours:
            yield block.strip()


def read_reports() -> tuple[list[str], int]:
    """What of the reports is the project's fault, and how many processes ended
    without their leaks checked because the checker itself failed."""
    found = []
    unchecked = 0
    for path in sorted(REPORTS.iterdir()):
        report = path.read_text(encoding="utf-8", errors="replace")
        if "ERROR: AddressSanitizer" in report:
            found.append(report)
        found += our_leaks(report)
        unchecked += "LeakSanitizer has encountered a fatal error" in report
    return found, unchecked


#: These spend their time on Python or the frameworks, and what of ours they run other
#: tests run as well: left out, or the sanitizers would take twice the tests' time.
PYTHON_ONLY = (
    "tests/test_accelerator.py",
    "tests/test_accelerator_planted.py",
    "tests/test_benchmarks.py",
    "tests/test_demo.py",
    "tests/test_examples.py",
    "tests/test_export.py",
    "tests/test_checkpoint.py",
    "tests/test_leaks.py",
    "tests/test_keras_exports.py",
    "tests/test_onnx_real_files.py",
    "tests/test_orders.py",
    "tests/test_silence.py",
    "tests/test_traced_step.py",
    "tests/test_training_schedule.py",
    "tests/test_torch_shim_build.py",
    "tests/test_xla_isolated.py",
    "tests/test_xla_memory.py",  # freed memory is kept aside for a while
)
ELSEWHERE = (
    "tests/test_device_failures.py::test_exit_waits_for_the_device_and_says_so",
    "tests/test_data_parallel.py::test_several_devices_give_what_one_gives[2-transformer",
    "tests/test_data_parallel.py::test_several_devices_give_what_one_gives[3-transformer",
    "tests/test_graph.py::test_minilm_is_served_as_eager_runs_it_with_any_batch_and_length",
    "tests/test_tensorflow_training.py::test_a_checkpoint_is_tensorflows_and_brings_everything_back",
    "tests/test_tensorflow_training.py::test_a_trainers_checkpoints_bring_it_back_and_the_last_is_tensorflows",
    "tests/test_tensorflow_training.py::test_what_a_trainer_has_saved_tensorflow_reads_value_by_value",
    "tests/test_tensorflow_training.py::test_export_says_what_is_wrong_with_its_arguments",
    "tests/test_torchscript.py::test_one_thread_is_one_whatever_torch_set_num_threads_said",
    "tests/test_train_and_serve.py::test_a_killed_run_goes_on_from_its_last_checkpoint_bit_by_bit",
    "tests/test_trainer.py::test_a_fit_is_the_eager_loop_to_the_last_bit[Transformer-adam]",
    "tests/test_trainer.py::test_a_fit_is_the_eager_loop_to_the_last_bit[Transformer-adamw]",
    "tests/test_tensorflow_process.py::test_live_keras_models_and_functions_run_with_one_line_and_give_numpy",
    "tests/test_xla_trainer.py::test_a_checkpoint_brings_everything_back_bit_by_bit",
    "tests/test_xla_trainer.py::test_a_killed_process_leaves_a_checkpoint_that_is_gone_on_with",
    # A forked child that ends as others do: what the stacks of threads that it doesn't
    # have point to is a leak to the checker.
    "tests/test_tensorflow_process.py::test_process_ends_while_tensorflow_runs[fork]",
)


def main() -> int:
    copy_sources()
    plain = dict(os.environ)
    build(plain)
    environment = sanitized(plain)
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    check_it_is_the_one(environment)
    # Time limits are for unsanitized code. Only Python's own streams are captured: what
    # UBSan says last must not be lost with the process.
    tests = ["-o", "timeout=300", "-o", "faulthandler_timeout=600"]
    tests += ["--capture=sys", *(f"--ignore={name}" for name in PYTHON_ONLY)]
    tests += [*(f"--deselect={name}" for name in ELSEWHERE)]
    tests += sys.argv[1:] or ["tests"]  # not the examples
    status = shards.run(tests, cwd=TREE, environment=environment)
    found, unchecked = read_reports()
    for report in found:
        print(report, end="\n\n")
    print(f"sanitizers: {len(found)} reports, the tests' exit status {status}")
    if unchecked:
        print(f"{unchecked} processes ended without a check for leaks")
    return 1 if found or status else 0


if __name__ == "__main__":
    sys.exit(main())
