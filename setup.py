"""Builds the C half. Metadata is in pyproject.toml."""

from __future__ import annotations

import glob
import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as _build_ext

if not sys.platform.startswith("linux"):
    sys.exit("pyasyncml needs Linux: its completions travel through eventfd(2)")


class build_ext(_build_ext):
    def build_extensions(self) -> None:
        # Found, not imported: importing tvm_ffi looks for a torch to extend.
        spec = importlib.util.find_spec("tvm_ffi")
        if spec is None or not spec.submodule_search_locations:
            sys.exit("pyasyncml's build needs <dlpack/dlpack.h>: pip install apache-tvm-ffi")
        dlpack = str(Path(spec.submodule_search_locations[0]) / "include")
        for extension in self.extensions:
            extension.include_dirs.append(dlpack)
        super().build_extensions()


setup(
    ext_modules=[
        Extension(
            "pyasyncml._core",
            sources=sorted(
                glob.glob("csrc/engine/*.c")
                + glob.glob("csrc/python/*.c")
                + ["csrc/backends/echo.c"]
            ),
            include_dirs=["csrc/engine", "csrc/python", "csrc/backends"],
            extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-O2"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
