"""The built package contains the files of the repository."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {"build", "dist", "tests"}


def test_every_folder_of_the_package_is_listed_for_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {
        ".".join(["voxelwave", *init.parent.relative_to(ROOT).parts])
        for init in ROOT.rglob("__init__.py")
        if not any(part in NOT_OURS or part.startswith(".") for part in init.relative_to(ROOT).parts)
    }
    assert listed == folders


def test_only_the_package_file_lies_at_the_root():
    assert [p.name for p in ROOT.glob("*.py")] == ["__init__.py"]


def test_every_data_file_is_listed_for_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = {package: ROOT.joinpath(*package.split(".")[1:]) for package in patterns}
    listed = {path for package, names in patterns.items() for name in names for path in folders[package].glob(name)}
    data = {p for p in (ROOT / "apps").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert data == {path for path in listed if (ROOT / "apps") in path.parents}
