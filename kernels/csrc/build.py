"""Compile the CPU kernels into one library with a build per instruction-set level, using GCC or Clang.

    python kernels/csrc/build.py OUTPUT [--compiler "g++"] [--machine x86_64|aarch64] [--system linux|darwin|win32]

`pip install` calls `build` for its own machine, through commands.py; README.md in this folder covers other machines.
"""

import argparse
import concurrent.futures
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra"]
KERNELS = (
    "selective_scan",
    "selective_scan_double",
    "fields",
    "information",
    "transforms",
    "attention",
    "memory",
    "depthwise",
    "signal_layers",
    "products",
    "pixel_layers",
)
LEVELS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "v2": ["-march=x86-64-v2"],
        "v3": ["-march=x86-64-v3"],
        "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
    "aarch64": {"generic": []},
}


def build(output: Path, compiler: list[str] | None = None, machine: str = "", system: str = sys.platform) -> None:
    """Write the library to `output`.

    Args:
        output: kernels/cpu.native.so, or .dylib on macOS, or .dll on Windows.
        compiler: command and leading arguments; by default $CXX, g++, clang++ or c++.
        machine: x86_64 or aarch64; this machine by default.
        system: linux, darwin or win32; this system by default.

    Raises:
        RuntimeError: the library cannot be built; the text contains the compiler's messages.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        (machine or platform.machine()).lower(), machine or platform.machine()
    )
    if machine not in LEVELS:
        raise RuntimeError(f"machine must be one of {', '.join(LEVELS)}, got {machine!r}")
    compiler = compiler or _find_compiler()
    try:
        _compile(output, compiler, machine, system, threads=["-fopenmp"])
    except RuntimeError:  # Clang without libomp: the source then uses its own threads
        _compile(output, compiler, machine, system, threads=[] if system == "win32" else ["-pthread"])


def _find_compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise RuntimeError("no C++ compiler found: install g++ or clang++, or set CXX")


def _compile(output: Path, compiler: list[str], machine: str, system: str, threads: list[str]) -> None:
    position = [] if system == "win32" else ["-fPIC"]
    # GCC's AVX-512 header reads an undefined register on purpose; Clang does not know the name of this flag
    quiet = ["-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
    with tempfile.TemporaryDirectory() as folder:
        jobs, objects = [], []
        builds = [(source, level, flags) for source in KERNELS for level, flags in LEVELS[machine].items()]
        for source, level, flags in [*builds, ("cpu_level", "", [])]:
            chosen = [*flags, f"-DVW_LEVEL={level}"] if level else []
            if any("zig" in word for word in compiler):  # zig writes the names of the levels with underscores
                chosen = [flag.replace("-march=x86-64-", "-march=x86_64_") for flag in chosen]
            objects.append(str(Path(folder, f"{source}-{level}.o")))
            jobs.append([*compiler, *FLAGS, *quiet, *position, *threads, *chosen, "-c", str(SOURCES / f"{source}.cpp")])
            jobs[-1] += ["-o", objects[-1]]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, jobs))
        linked = Path(folder, output.name)
        as_needed = ["-Wl,--as-needed"] if system == "linux" else []
        _run([*compiler, "-shared", *threads, *objects, *as_needed, "-o", str(linked)])
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        shutil.copy(linked, temporary)
        os.replace(temporary, output)  # a process that has loaded the old library keeps it


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"cannot run {command[0]}: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the library to write, such as kernels/cpu.native.so")
    parser.add_argument("--compiler", type=shlex.split, help="command and leading arguments of the compiler")
    parser.add_argument("--machine", default="", help="x86_64 or aarch64; this machine by default")
    parser.add_argument("--system", default=sys.platform, help="linux, darwin or win32; this system by default")
    arguments = parser.parse_args()
    build(arguments.output, arguments.compiler, arguments.machine, arguments.system)
