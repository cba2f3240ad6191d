"""The page of one case: figures with their meaning, working links, valid HTML."""

import re

from voxelwave.apps.page.case_page import write_case_page
from voxelwave.runs.record import write_record

from ..html import PROGRAM, html_faults


def test_the_page_explains_its_figures_and_links_its_files(tmp_path):
    (tmp_path / "a scan.nii.gz").write_bytes(b"")
    options = {"effort": "fast", "weights": None}
    write_record(
        tmp_path / "record.json",
        inputs={"input": tmp_path / "a scan.nii.gz"},
        options=options,
        metrics={"nmi_after": 1.25, "unit": "relative"},
        notes=["a note with <signs>"],
    )
    write_case_page(
        tmp_path / "page.html",
        tmp_path / "record.json",
        title="Registration",
        figures="metrics",
        picture="picture.png",
        caption="Slices.",
        files={"a scan.nii.gz": "the result"},
    )
    page = (tmp_path / "page.html").read_text()
    assert re.search(r"nmi after.*1.25.*higher is better", page)
    assert "a note with &lt;signs&gt;" in page
    assert "effort" in page
    assert str(tmp_path) not in page  # the names of files only
    assert re.findall(r'href="([^"]*)"', page) == ["a%20scan.nii.gz", "record.json"]
    assert not PROGRAM or html_faults(tmp_path / "page.html") == []
