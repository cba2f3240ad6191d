"""A plain installation: what needs a package of an extra says so in one line, and everything else runs without it."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from voxelwave.apps.commands import COMMANDS, TOP_LEVEL
from voxelwave.apps.tools.reference import command_pages
from voxelwave.runs.extras import EXTRAS, PIP_NAMES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted({name for names in EXTRAS.values() for name in names})
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({PACKAGES}, None)); "  # as if they were not installed
VERBS = [(f"{field} {verb}", entry) for field, verbs in COMMANDS.items() for verb, entry in verbs.items()]
VERBS += list(TOP_LEVEL.items())


def _run(code: str, **kept) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, **kept)


def _command(words: list[str], **kept) -> subprocess.CompletedProcess[str]:
    return _run(f"from voxelwave.apps.cli import main; sys.exit(main({words}))", **kept)


def test_the_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(listed: list[str]) -> list[str]:
        return sorted(re.match(r"[\w-]+", entry).group() for entry in listed)

    for extra, packages in EXTRAS.items():
        expected = sorted(PIP_NAMES.get(name, name) for name in packages)
        assert names(project["optional-dependencies"][extra]) == expected
    plain = names(project["dependencies"])
    assert not {PIP_NAMES.get(name, name) for name in PACKAGES} & set(plain)
    for extra in EXTRAS:
        assert f"{extra}," in project["optional-dependencies"]["all"][0]
    assert "voxelwave[all]" in project["optional-dependencies"]["dev"]


def test_commands_without_extras_load_without_their_packages():
    modules = sorted({entry.work.split(":")[0] for _, entry in VERBS if not entry.extras})
    assert len(modules) > 25
    code = f"import importlib; [importlib.import_module('voxelwave.apps.' + name) for name in {modules}]"
    found = _run(code)
    assert found.returncode == 0, found.stderr


def test_every_public_name_loads_without_the_packages_of_extras():
    folders = ["registration", "restoration", "eeg", "scanpath", "volumes", "kernels.attention", "kernels.scan"]
    code = f"import importlib; loaded = [importlib.import_module('voxelwave.' + name) for name in {folders}]; "
    found = _run(code + "print(sum(getattr(one, name) is not None for one in loaded for name in one.__all__))")
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 30


def test_commands_with_extras_say_which_one_before_any_work(tmp_path):
    found = _command(["eeg", "planted", "-o", str(tmp_path / "out")])
    wanted = "voxelwave eeg planted needs lightning and optuna and pyriemann, which are not installed: pip install"
    assert (found.returncode, found.stderr) == (1, f'voxelwave: error: {wanted} "voxelwave[eeg]"\n')
    assert not (tmp_path / "out").exists()


def test_every_extra_that_a_command_needs_stands_in_its_reference():
    pages = "\n".join(command_pages().values())
    needed = [entry.extras for _, entry in VERBS if entry.extras]
    assert {extra for extras in needed for extra in extras} == set(EXTRAS)
    assert pages.count("Needs `pip install") == len(needed)


@pytest.mark.parametrize("name", ["out.h5", "old.h5"])
def test_an_h5_file_names_its_extra(name, tmp_path):
    (tmp_path / "old.mat").touch()
    (tmp_path / "old.h5").touch()
    transform, output = ("old.mat", name) if name == "out.h5" else (name, "new.mat")
    words = ["registration", "transform", str(tmp_path / transform), "-o", str(tmp_path / output)]
    found = _command(words)
    assert found.returncode == 1
    assert found.stderr == (
        'voxelwave: error: an .h5 file needs antspyx, which is not installed: pip install "voxelwave[registration]"\n'
    )


def test_syn_names_its_extra_before_any_work(tmp_path):
    pair = [str(ROOT / "apps" / "demo" / "data" / name) for name in ("atlas.nii.gz", "sub-01_T1w.nii.gz")]
    found = _command(["registration", "register", *pair, "-o", str(tmp_path / "out"), "--method", "syn"])
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert 'pip install "voxelwave[registration]"' in found.stderr
    assert not (tmp_path / "out").exists()


def test_shipped_weights_restore_and_linear_transforms_are_read_without_extras(tmp_path):
    picture = ROOT / "apps" / "demo" / "data" / "flair_slice.nii.gz"
    text = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
    text += "Parameters: 1 0 0 0 1 0 0 0 1 2 0 0\nFixedParameters: 0 0 0\n"
    (tmp_path / "shift.txt").write_text(text)
    found = _command(
        ["registration", "transform", str(tmp_path / "shift.txt"), "-o", str(tmp_path / "shift.mat"), "--json"]
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["exit_code"] == 0
    found = _command(["restoration", "restore", str(picture), "-o", str(tmp_path / "out.nii.gz"), "-q"])
    assert found.returncode == 0, found.stderr
