"""What pyproject.toml tells setuptools about the compiled scan: how to build it and how to tag the wheel."""

import platform
import runpy
import sys
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


class BuildScan(build_ext):
    """One library that depends on no Python version; without a compiler the package installs all the same."""

    def get_ext_filename(self, fullname):
        # the second dot keeps Python from taking the library for a module
        return "/".join([*fullname.split(".")[:-1], "scan.native" + SUFFIX])

    def build_extension(self, ext):
        build = runpy.run_path(str(Path(__file__).with_name("build.py")))["build"]
        try:
            build(Path(self.get_ext_fullpath(ext.name)))
        except RuntimeError as error:
            self.warn(f"no compiled scan, voxelwave will use plain PyTorch for it: {error}")


class Wheel(bdist_wheel):
    """Tagged py3-none-PLATFORM: the library is called through ctypes."""

    def get_tag(self):
        # Python itself may serve both processors of macOS; our library serves the one it was built on
        return "py3", "none", super().get_tag()[2].replace("universal2", platform.machine())
