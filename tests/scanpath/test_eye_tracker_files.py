"""Fixations of eye trackers, written by hand as their programs write them, become scanpaths."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelwave.apps import cli
from voxelwave.runs.exit import DONE, ERROR, SOME_FAILED, USAGE
from voxelwave.scanpath.eye_tracker_files import read_eyelink, read_fixation_table, screen_of_eyelink
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


@pytest.mark.parametrize("eye", ["L", "R"])
def test_a_recording_of_one_eye_has_its_fixations(eye, tmp_path):
    only = [line for line in ASC.splitlines() if not line.startswith("EFIX " + ("R" if eye == "L" else "L"))]
    (tmp_path / "a.asc").write_text("\n".join(only))
    assert len(read_eyelink(tmp_path / "a.asc", eye="R")) == (1 if eye == "L" else 3)


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("MSG\t9 DISPLAY_COORDS 0 0 1919 1079", (1920, 1080)),
        ("MSG\t9 DISPLAY_COORDS = 0, 0, 1023, 767", (1024, 768)),
        ("MSG\t9 GAZE_COORDS 0.00 0.00 1279.00 1023.00", (1280, 1024)),
        ("MSG\t9 RECCFG CR 1000 2 1 R", None),
    ],
)
def test_the_screen_of_an_asc_is_known(message, size, tmp_path):
    (tmp_path / "a.asc").write_text(f"** CONVERTED\n{message}\n")
    assert screen_of_eyelink(tmp_path / "a.asc") == size


def test_pictures_smaller_than_the_screen_are_noted(pictures, tmp_path, capsys):
    (tmp_path / "a.asc").write_text("MSG\t9 DISPLAY_COORDS 0 0 379 219\n" + ASC)
    words = ["scanpath", "import", str(tmp_path / "a.asc"), "--pictures", str(pictures), "--grid", "2,3", "--overwrite"]
    words += ["-o", str(tmp_path / "data.json")]
    assert cli.main(words) == DONE
    assert "380 x 220 pixels, and the picture kitchen 180 x 120" in (shown := capsys.readouterr().out)
    assert "--origin 100,50" in shown
    assert cli.main([*words, "--origin", "0,1"]) == DONE
    assert "the screen" not in capsys.readouterr().out


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
    assert "2 scanpaths of 1 person on 2 pictures" in capsys.readouterr().out
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
    assert "lacks 1 picture that the fixations name" in capsys.readouterr().err
    assert cli.main(words) == USAGE
    assert not (tmp_path / "d.json").exists()


def test_a_picture_becomes_cells_with_their_mean_colours(pictures):
    scene = scene_of_picture(pictures / "kitchen.png", rows=2, columns=3)
    assert (len(scene), scene.size, scene.rows) == (6, (180, 120), 2)
    np.testing.assert_allclose(scene.features, np.broadcast_to([1.0, 0.0, 0.2], (6, 3)), atol=1e-3)
    assert scene.objects[4].box == (60.0, 60.0, 60.0, 60.0)
    with pytest.raises(ValueError, match="the grid must have"):
        scene_of_picture(pictures / "kitchen.png", rows=500)


def test_scanpaths_are_predicted_on_a_folder_of_pictures(pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "._street.jpg").write_bytes(b"of macOS")
    words = ["scanpath", "predict", str(pictures), "-o", str(tmp_path / "out"), "--grid", "2,3", "--no-pictures"]
    assert cli.main([*words, "--weights", "planted-observer", "--samples", "1"]) == SOME_FAILED
    assert "objects of 3 pictures are 2 x 3 cells" in capsys.readouterr().out
    rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["broken.png", "kitchen", "street"]


def test_what_holds_no_scene_is_told_before_the_work(tmp_path, capsys):
    (tmp_path / "fixations.tsv").write_text("x\n")
    words = ["scanpath", "predict", str(tmp_path / "fixations.tsv"), "-o", str(tmp_path / "out"), "--weights", "x"]
    assert cli.main(words) == USAGE
    assert "`voxelwave scanpath import` reads the files of eye trackers" in capsys.readouterr().err


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
