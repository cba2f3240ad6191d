"""The documentation site: it builds strictly, runs its notebooks, and is valid HTML."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from voxelwave.kernels.attention.mixer import CS, NS

from .apps.html import html_faults

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings", "jupytext", "IPython"):
        pytest.importorskip(package, reason='needs pip install "voxelwave[docs]"')
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]  # a link that leads nowhere, a cell of a notebook that fails
    return folder


@pytest.mark.slow
def test_the_site_shows_what_the_notebooks_gave(site):
    pages = {path.stem: path.read_text() for path in (site / "notebooks").glob("*.html")}
    assert "nmi_after" in pages["registration"]
    assert "data:image/png" in pages["registration"]  # the slices of a volume
    assert "restored: 2" in re.sub(r"<[^>]*>", "", pages["restoration"])
    assert "probability 0." in re.sub(r"<[^>]*>", "", pages["eeg"])
    assert all((site / "notebooks" / f"{name}.ipynb").is_file() for name in pages)
    assert str(ROOT) not in "".join(pages.values())


@pytest.mark.slow
def test_the_site_is_valid_html(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    assert html_faults(*pages, config=ROOT / "docs" / "htmlvalidate.json") == []


def test_the_mechanism_of_the_how_to_page_falls_with_distance():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "mechanism.md").read_text(), re.S)
    names: dict = {"__name__": "docs.mechanism"}
    exec(code, names)
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    i = torch.arange(5.0, dtype=torch.float64)
    scores = q @ k.mT / 2 - 0.3 * (i[:, None] - i).abs()
    for pattern, hidden in ((NS, torch.zeros(5, 5)), (CS, torch.ones(5, 5).triu(1))):
        expected = scores.masked_fill(hidden.bool(), -torch.inf).softmax(-1) @ v
        torch.testing.assert_close(names["NearAttention"](slope=0.3)(q, k, v, pattern=pattern).out, expected)
