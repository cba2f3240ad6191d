"""Setuptools commands, named in pyproject.toml, that build the compiled kernels and tag the wheel."""

import platform
import runpy
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


class BuildKernels(build_ext):
    """Builds one library for all Python versions; without a compiler, the package is installed without the library."""

    def get_ext_filename(self, fullname: str) -> str:
        # because of the second dot, Python does not mistake the library for a module
        return "/".join([*fullname.split(".")[:-1], "cpu.native" + SUFFIX])

    def build_extension(self, ext: Extension) -> None:
        build = runpy.run_path(str(Path(__file__).with_name("build.py")))["build"]
        try:
            build(Path(self.get_ext_fullpath(ext.name)))
        except RuntimeError as error:
            self.warn(f"the compiled kernels were not built; voxelwave will use plain PyTorch instead: {error}")


class Wheel(bdist_wheel):
    """Tags the wheel py3-none-PLATFORM: the library is called through ctypes and fits every Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        # a macOS Python may be built for both processors; our library is built for this one only
        return "py3", "none", super().get_tag()[2].replace("universal2", platform.machine())
