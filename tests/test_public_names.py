"""The Python interface: public names, light imports, and the example of docs/python.md."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import voxelwave

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ["registration", "restoration", "eeg", "scanpath", "volumes"]


@pytest.mark.parametrize("field", FIELDS)
def test_every_public_name_can_be_imported_and_is_documented(field):
    package = importlib.import_module(f"voxelwave.{field}")
    assert package.__all__
    assert set(package.__all__) <= set(dir(package))
    found = {name: getattr(package, name) for name in package.__all__}
    assert [name for name, value in found.items() if inspect.ismodule(value)] == []
    assert [name for name, value in found.items() if callable(value) and not inspect.getdoc(value)] == []


ORDERS = [
    "from voxelwave.registration import register",
    "import voxelwave.registration.register; from voxelwave.registration import register",
    "from voxelwave.registration.register import register; from voxelwave.registration import register",
    "import voxelwave.apps.registration.work; from voxelwave.registration import register",
]


@pytest.mark.slow
@pytest.mark.parametrize("words", ORDERS)
def test_register_is_the_function_in_whatever_order_things_are_imported(words):
    code = f"{words}; import inspect; assert inspect.isfunction(register), register"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_a_field_loads_nothing_heavy():
    fields = ", ".join(f"voxelwave.{field}" for field in FIELDS if field != "volumes")
    code = f"import sys, {fields}; print({{'torch', 'numpy', 'mne', 'nibabel'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_the_version_is_that_of_the_package():
    assert re.match(r"\d+\.\d+|unknown", voxelwave.__version__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"voxelwave\.registration.*registre"):
        _ = voxelwave.registration.registre
    with pytest.raises(ImportError):
        exec("from voxelwave.eeg import nothing")


PAGE = (ROOT / "docs" / "python.md").read_text()
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


def test_there_is_a_notebook_of_a_few_lines_for_each_application():
    assert {script.stem for script in NOTEBOOKS} == {"registration", "restoration", "eeg", "scanpath"}
    for script in NOTEBOOKS:
        code = [
            line
            for line in script.read_text().splitlines()
            if line.strip() and not line.startswith(("#", "import", "from"))
        ]
        assert len(code) <= 16, script.name  # ten lines of use, and a picture


def test_images_go_to_other_libraries_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voxelwave-demo").mkdir()
    (tmp_path / "voxelwave-demo" / "data").symlink_to(ROOT / "apps" / "demo" / "data")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, "docs/python.md", "exec"), {})
