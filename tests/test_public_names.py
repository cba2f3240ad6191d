"""The Python interface: public names, light imports, and the examples of docs/python.md."""

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


EXAMPLES = re.findall(r"## (.*?)\n.*?```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)


def test_there_is_an_example_for_each_application():
    assert len(EXAMPLES) >= 5
    assert [title for title, code in EXAMPLES if len([line for line in code.splitlines() if line.strip()]) > 10] == []


@pytest.mark.slow
@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_examples_of_the_documentation_run(title, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "apps" / "demo" / "data")
    exec(compile(code, f"docs/python.md, {title}", "exec"), {})
