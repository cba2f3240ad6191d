"""Fixations of eye trackers, written by hand as their programs write them, become scanpaths."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelwave.apps import cli
from voxelwave.runs.exit import DONE, ERROR, USAGE
from voxelwave.scanpath.eye_tracker_files import read_eyelink, read_fixation_table
from voxelwave.scanpath.picture_scenes import scene_of_picture
from voxelwave.scanpath.readers import read_scanpaths

ASC = """** CONVERTED FROM sub7.edf
MSG\t1000 TRIALID 1
MSG\t1005 !V IMGLOAD FILL images/kitchen.png 0 0
START\t2000 \tLEFT\tRIGHT\tSAMPLES\tEVENTS
EFIX L   2010\t2200\t190\t  11.0\t  21.0\t   900
EFIX R   2012\t2202\t190\t  101.5\t  52.0\t   900
ESACC R  2203\t2240\t38\t 101.5\t 52.0\t 150.0\t 60.0\t 1.2\t 90
EFIX R   2241\t2500\t260\t  150.0\t  60.5\t   880
EFIX R   2501\t2510\t10\t .\t .\t 0
END\t2600 \tSAMPLES\tEVENTS
MSG\t3000 TRIALID 2
MSG\t3001 IMGLOAD street.jpg
START\t4000 \tLEFT\tRIGHT
EFIX R   4100\t4300\t201\t  30.0\t  20.0\t   880
END\t5000
"""


@pytest.fixture
def pictures(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.full((120, 180, 3), (255, 0, 51), np.uint8)).save(tmp_path / "pictures" / "kitchen.png")
    Image.fromarray(np.zeros((120, 180), np.uint8)).save(tmp_path / "pictures" / "street.jpg")
    return tmp_path / "pictures"


def test_eyelink_events_have_their_trial_picture_and_time(tmp_path):
    (tmp_path / "sub7.asc").write_text(ASC)
    found = read_eyelink(tmp_path / "sub7.asc")
    assert [(f.scene, f.trial, f.x, f.y) for f in found] == [
        ("kitchen", 1, 101.5, 52.0),
        ("kitchen", 1, 150.0, 60.5),
        ("street", 2, 30.0, 20.0),
    ]
    assert [f.onset for f in found] == pytest.approx([0.012, 0.241, 0.1])
    assert [f.duration for f in found] == pytest.approx([0.19, 0.26, 0.201])
    assert {f.person for f in found} == {"sub7"}
    assert [f.x for f in read_eyelink(tmp_path / "sub7.asc", eye="L")] == [11.0]


def test_an_asc_without_events_is_refused(tmp_path):
    (tmp_path / "a.asc").write_text("1000 1.0 2.0 300\n")
    with pytest.raises(ValueError, match="holds no fixation"):
        read_eyelink(tmp_path / "a.asc")


@pytest.mark.parametrize(
    ("header", "mark"),
    [
        (
            "RECORDING_SESSION_LABEL\tTRIAL_INDEX\timage\tCURRENT_FIX_X\tCURRENT_FIX_Y\tCURRENT_FIX_START\tCURRENT_FIX_DURATION",
            "\t",
        ),
        ("Participant name;Trial;Stimulus Name;Fixation Point X;Fixation Point Y;Start;Fixation duration", ";"),
        ("subject,trial,scene,x,y,onset,duration", ","),
    ],
)
def test_tables_are_recognised_by_the_usual_names(header, mark, tmp_path):
    rows = [("p1", "1", "kitchen.png", "12.5", "30", "0", "200"), ("p1", "1", "kitchen.png", "15", "31", "250", "180")]
    rows.append(("p2", "1", "kitchen.png", ".", ".", "0", "1"))
    (tmp_path / "a.txt").write_text("\n".join([header, *(mark.join(row) for row in rows)]) + "\n")
    found = read_fixation_table(tmp_path / "a.txt")
    assert [(f.person, f.x, f.onset, f.duration) for f in found] == [("p1", 12.5, 0.0, 0.2), ("p1", 15.0, 0.25, 0.18)]


def test_other_names_are_given_and_what_is_missing_is_named(tmp_path):
    (tmp_path / "a.tsv").write_text("pic\tgx\tgy\nk\t1\t2\n")
    with pytest.raises(ValueError, match="columns for scene, x, y, got pic, gx, gy; name them with --columns"):
        read_fixation_table(tmp_path / "a.tsv")
    found = read_fixation_table(tmp_path / "a.tsv", columns={"scene": "pic", "x": "gx", "y": "gy"})
    assert (found[0].scene, found[0].person, found[0].onset) == ("k", "a", None)
    (tmp_path / "b.tsv").write_text("scene\tx\ty\nk\tleft\t2\n")
    with pytest.raises(ValueError, match=r"b\.tsv, line 2: expected a number, got 'left'"):
        read_fixation_table(tmp_path / "b.tsv")


def test_the_command_writes_scanpaths_that_the_reader_takes(pictures, tmp_path, capsys):
    (tmp_path / "sub7.asc").write_text(ASC)
    words = ["scanpath", "import", str(tmp_path / "sub7.asc"), "--pictures", str(pictures), "--grid", "2,3"]
    assert cli.main([*words, "-o", str(tmp_path / "data.json")]) == DONE
    dataset = read_scanpaths(tmp_path / "data.json")
    assert set(dataset.scenes) == {"kitchen", "street"}
    kitchen = next(trial for trial in dataset.trials if trial.scene == "kitchen")
    assert kitchen.objects.tolist() == [
        1,
        5,
    ]  # (101, 52) is in the upper middle cell, (150, 60.5) in the lower right one
    np.testing.assert_allclose(kitchen.duration, [0.19, 0.26])
    assert "2 scanpaths of 1 people on 2 pictures" in capsys.readouterr().out
    words += ["--origin", "100,50", "-o", str(tmp_path / "moved.json")]
    assert cli.main(words) == DONE
    assert "1 of 3 fixations lie outside" in capsys.readouterr().out
    record = json.loads((tmp_path / "moved.json").read_text())["trials"][0]
    assert (record["x"], record["y"]) == ([1.5, 50.0], [2.0, 10.5])


def test_pictures_that_are_not_there_are_named(pictures, tmp_path, capsys):
    (pictures / "street.jpg").unlink()
    (tmp_path / "a.asc").write_text(ASC)
    words = ["scanpath", "import", str(tmp_path / "a.asc"), "-o", str(tmp_path / "d.json")]
    assert cli.main([*words, "--pictures", str(pictures)]) == ERROR
    assert "1 pictures that the fixations name are not in" in capsys.readouterr().err
    assert cli.main(words) == USAGE
    assert not (tmp_path / "d.json").exists()


def test_a_picture_becomes_cells_with_their_mean_colours(pictures):
    scene = scene_of_picture(pictures / "kitchen.png", rows=2, columns=3)
    assert (len(scene), scene.size, scene.rows) == (6, (180, 120), 2)
    np.testing.assert_allclose(scene.features, np.broadcast_to([1.0, 0.0, 0.2], (6, 3)), atol=1e-3)
    assert scene.objects[4].box == (60.0, 60.0, 60.0, 60.0)
    with pytest.raises(ValueError, match="the grid must have"):
        scene_of_picture(pictures / "kitchen.png", rows=500)


@pytest.mark.slow
def test_scanpaths_are_predicted_on_a_picture_in_one_command(pictures, tmp_path, capsys):
    words = ["scanpath", "predict", str(pictures / "kitchen.png"), "-o", str(tmp_path / "out"), "--grid", "2,3"]
    assert cli.main([*words, "--weights", "planted-observer", "--samples", "2"]) == DONE
    assert "2 x 3 cells of a grid; no detector" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert len(content["objects"]) == 6
    assert (tmp_path / "out" / "scanpath.png").is_file()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert (
        cli.main(
            [
                "scanpath",
                "predict",
                str(tmp_path / "broken.png"),
                "-o",
                str(tmp_path / "o"),
                "--weights",
                "planted-observer",
            ]
        )
        == ERROR
    )
