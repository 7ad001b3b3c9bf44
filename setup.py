"""Builds the native half. Metadata is in pyproject.toml.

PYASYNCML_TORCH names the folder of the package `torch` where it isn't found by itself.
PYASYNCML_SANITIZE=address,undefined builds with sanitizers, PYASYNCML_WERROR=1 with
warnings as errors.
"""

from __future__ import annotations

import copy
import glob
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.command.build_py import build_py as _build_py

if not sys.platform.startswith("linux"):
    sys.exit("pyasyncml needs Linux: its completions travel through eventfd(2)")

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
TORCH = "pyasyncml.backends._torch"


def load_torch_build() -> ModuleType:
    """The module that knows how the torch backend is built, without its package."""
    path = ROOT / "pyasyncml" / "backends" / "_torch_build.py"
    spec = importlib.util.spec_from_file_location("_torch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


torch_build = load_torch_build()


def option_flags() -> list[str]:
    """What the environment asks of compiler and linker both."""
    flags = []
    if os.environ.get("PYASYNCML_WERROR"):
        flags.append("-Werror")
    if sanitizers := os.environ.get("PYASYNCML_SANITIZE"):
        flags += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer"]
        flags.append("-fno-sanitize-recover=undefined")
        # Lines are all that a report needs; more takes the compiler twice the time.
        flags += ["-g1", "-O1"]
    return flags


def core_extension() -> Extension:
    return Extension(
        "pyasyncml._core",
        sources=sorted(
            glob.glob("csrc/engine/*.c")
            + glob.glob("csrc/python/*.c")
            + glob.glob("csrc/backends/echo*.c")
        ),
        depends=sorted(glob.glob("csrc/**/*.h", recursive=True)),
        include_dirs=["csrc/engine", "csrc/python", "csrc/backends"],
        define_macros=[("_GNU_SOURCE", "1")],
        extra_compile_args=[
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-O2",
            "-fvisibility=hidden",
            *option_flags(),
        ],
        extra_link_args=option_flags(),
    )


def plain_extension(name: str) -> Extension:
    """A backend in plain C, which needs nothing of the framework: its library is opened
    when it is first used."""
    core = core_extension()
    return Extension(
        f"pyasyncml.backends._{name}",
        sources=sorted(
            glob.glob(f"csrc/backends/{name}/*.c")
            + ["csrc/engine/value.c", "csrc/engine/string_tensor.c"]
            + ["csrc/backends/numbers.c"]
        ),
        depends=core.depends,
        include_dirs=["csrc/engine", "csrc/backends", f"csrc/backends/{name}"],
        define_macros=core.define_macros,
        libraries=["m"],
        extra_compile_args=core.extra_compile_args,
        extra_link_args=core.extra_link_args,
    )


def torch_extensions() -> list[Extension]:
    """The torch backend, where torch and a C++ compiler are there. Where they aren't,
    it is built at first use."""
    try:
        if torch_build.find_torch() is None:
            return []
        torch_build.find_compiler()
    except torch_build.NoCompiler as error:
        print(f"pyasyncml: left for later: {error}", file=sys.stderr)
        return []
    except torch_build.BuildError as error:
        sys.exit(str(error))
    files = [str(path.relative_to(ROOT)) for path in torch_build.sources(CSRC)]
    return [
        Extension(
            TORCH,
            sources=[name for name in files if name.endswith(".cpp")],
            depends=[name for name in files if name.endswith(".h")],
            # One command compiles and links. LibTorch keeps the type information that
            # UBSan's vptr check needs to itself.
            extra_compile_args=[*option_flags(), "-fno-sanitize=vptr"],
        )
    ]


class build_ext(_build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = len(os.sched_getaffinity(0))

    def build_extensions(self) -> None:
        # Found, not imported: importing tvm_ffi looks for a torch to extend.
        spec = importlib.util.find_spec("tvm_ffi")
        if spec is None or not spec.submodule_search_locations:
            sys.exit(
                "pyasyncml's build needs <dlpack/dlpack.h>: pip install apache-tvm-ffi"
            )
        dlpack = str(Path(spec.submodule_search_locations[0]) / "include")
        for extension in self.extensions:
            extension.include_dirs.append(dlpack)
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        if ext.name != TORCH:
            # Several are built at once, and some have a source in common: each has a
            # folder of its own for what it compiles.
            alone = copy.copy(self)
            alone.build_temp = os.path.join(self.build_temp, ext.name)
            super(build_ext, alone).build_extension(ext)
            return
        # As at first use, with one compiler call of its own: see _torch_build.py.
        output = Path(self.get_ext_fullpath(ext.name))
        torch = torch_build.find_torch()
        if not self.force and torch_build.key_of(output) == torch_build.build_key(
            torch, CSRC
        ):
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch_build.compile_backend(torch, CSRC, output, ext.extra_compile_args)
        except torch_build.BuildError as error:
            sys.exit(str(error))


class build_py(_build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "pyasyncml"
        if TORCH not in {ext.name for ext in self.distribution.ext_modules}:
            # An earlier build in this folder, for an environment with torch.
            for stale in (package / "backends").glob("_torch.*.so"):
                stale.unlink()
        # For the build of the torch backend at first use.
        target = package / "_csrc"
        shutil.rmtree(target, ignore_errors=True)
        for path in torch_build.sources(CSRC):
            copy = target / path.relative_to(CSRC)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


setup(
    ext_modules=[
        *torch_extensions(),  # takes longest
        core_extension(),
        plain_extension("onnxruntime"),
        plain_extension("tensorflow"),
        plain_extension("xla"),
    ],
    cmdclass={"build_ext": build_ext, "build_py": build_py},
)
