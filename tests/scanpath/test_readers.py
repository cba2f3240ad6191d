import copy
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from voxelwave.scanpath.metrics import behaviour, edit_distance, sequence_score
from voxelwave.scanpath.own_files import write_scanpaths
from voxelwave.scanpath.readers import map_fixations, read_scanpaths, with_crops
from voxelwave.scanpath.scene import Scene, SceneObject

WRONG = (None, "x", -1, 1e400, [], {})


def own() -> dict[str, Any]:
    """Two scenes on a grid of 1 x 3, one with features; one trial with positions, one with objects and times."""
    boxes = [[0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10]]
    plain = [{"name": name, "box": box} for name, box in zip(("cup", "pan", "pot"), boxes, strict=True)]
    seen = [{**o, "features": [0.5, k]} for k, o in enumerate(plain)]
    return {
        "format": "voxelwave scanpaths",
        "version": 1,
        "scenes": [
            {"scene": "a", "width": 50, "height": 10, "objects": plain, "target": 1, "rows": 1, "columns": 3},
            {
                **{"scene": "b", "width": 50, "height": 10, "objects": seen, "layout": "a", "sought": "pot"},
                **{"image": "pictures/b.png", "target": 2},
            },
        ],
        "trials": [
            {"scene": "a", "person": "Ann", "x": [1, 14, 44], "y": [2, 3, 4]},
            {"scene": "b", "person": "Bob", "objects": [0, 2], "onset": [0, 0.3], "duration": [0.25, 0.5]},
        ],
    }


def collages(count: int = 12) -> dict[str, Any]:
    """Pictures of 300 x 200 pixels with 3 x 2 covers and one target box; all places of the grid occur twice."""
    content = {}
    for k in range(count):
        row, column = divmod(k % 6, 3)
        x, y = 50 + 100 * column, 50 + 100 * row
        content[f"{k}.jpg"] = {
            "fixations": {"1": [[x, y], [250, 150], [10 + k, 20]], "2": [[199, 60], [x, y + 3]]},
            "ground_truth": [{"xmin": x - 40, "xmax": x + 40, "ymin": y - 45, "ymax": y + 45}],
            "size": {"width": 300, "height": 200},
            "target": "covers/target_0.jpg" if k < 6 else "target_1.jpg",
        }
    return content


def coco() -> dict[str, Any]:
    """COCO boxes and COCO-Search18 fixations: a picture of half the screen's size, with and without its cup."""
    trial = {"name": "p.jpg", "subject": 3, "task": "cup", "condition": "present", "bbox": [40, 40, 80, 80]}
    return {
        "boxes.json": {
            "images": [{"id": 7, "file_name": "p.jpg", "width": 840, "height": 525}],
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "oven"}],
            "annotations": [
                {"image_id": 7, "category_id": 1, "bbox": [20, 20, 40, 40], "iscrowd": 0},
                {"image_id": 7, "category_id": 2, "bbox": [400, 200, 100, 100], "iscrowd": 0},
                {"image_id": 7, "category_id": 1, "bbox": [0, 0, 500, 500], "iscrowd": 1},
            ],
        },
        "fixations.json": [
            {**trial, "X": [840.0, 60.0, 2000.0], "Y": [525.0, 70.0, 10.0], "T": [200, 350, 100]},
            {**trial, "subject": 4, "task": "oven", "condition": "absent", "X": [900.0], "Y": [500.0], "T": [120]},
        ],
    }


def people_search() -> dict[str, Any]:
    """Searches of two people in one picture, 80 x 60 pixels, with two targets; positions count from 1."""
    trial = {"image": "room", "order": 1, "target_rect": [71, 51, 79, 59], "allowed_saccades": 4}
    return {
        "image_size": [80, 60],
        "people": {
            "subj01": [
                {**trial, "x": [1.0, 80.0, 11.4], "y": [1.0, 60.0, 10.6], "duration_ms": [200, 150, 300]},
                {**trial, "target_rect": [1, 1, 9, 9], "x": [45.0, 12.0], "y": [25.0, 12.0], "duration_ms": [90, 80]},
            ],
            "subj02": [{**trial, "x": [], "y": [], "duration_ms": []}],
        },
    }


def damages(content: Any) -> Iterator[tuple[str, Any]]:
    """The content with one of its parts removed or replaced by another value, and the place of that part."""
    for place in _places(content):
        if len(place) < 2 or str(place[1]) in list(collages())[1:]:
            continue  # the files themselves, and collages like the first one
        for wrong in (*WRONG, KeyError):
            damaged = copy.deepcopy(content)
            parent = damaged
            for key in place[:-1]:
                parent = parent[key]
            if wrong is not KeyError:
                parent[place[-1]] = wrong
            else:
                del parent[place[-1]]
            yield f"{'/'.join(map(str, place))} = {wrong}", damaged


def _places(content: Any) -> Iterator[tuple]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (key,)
        yield from ((key, *rest) for rest in _places(value))


@pytest.fixture
def files(tmp_path):
    """Write .json files into a folder and return it."""

    def write(contents):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content))
        return folder

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [("own.json", own()), ("collages.json", collages()), ("", coco()), ("people.json", people_search())],
)
def test_a_damaged_file_is_read_or_refused_with_one_line_that_names_what_was_wrong(files, name, content):
    # every part of the file in turn is removed or replaced; only ValueError may be raised
    content = {name: content} if name else content
    folder = files(content)
    refused = []
    for where, damaged in damages(content):
        for file, part in damaged.items():
            (folder / file).write_text(json.dumps(part))
        try:
            read_scanpaths(folder)
        except ValueError as error:
            refused.append((where, str(error)))
    assert len(refused) > 100
    assert [where for where, words in refused if "\n" in words or len(words) > 450] == []


def test_own_files_say_what_they_say(files):
    dataset = read_scanpaths(files({"own.json": own()}))
    a, b = dataset.scenes["a"], dataset.scenes["b"]
    assert (a.size, a.target, a.sought, a.layout, (a.rows, a.columns)) == ((50, 10), 1, "pan", "a", (1, 3))
    assert (b.target, b.sought, b.layout, b.image.name, b.rows) == (2, "pot", "a", "b.png", None)
    np.testing.assert_array_equal(b.features, np.float32([[0.5, 0], [0.5, 1], [0.5, 2]]))
    ann, bob = dataset.trials
    assert (ann.person, ann.objects.tolist(), ann.onset) == ("Ann", [0, 0, 2], None)
    assert (bob.objects.tolist(), bob.xy.tolist()) == ([0, 2], [[5, 5], [45, 5]])
    assert (bob.onset.tolist(), bob.duration.tolist()) == ([0, 0.3], [0.25, 0.5])
    assert dataset.target_position == "hidden"


@pytest.mark.parametrize(
    "content", [{"own.json": own()}, {"c.json": collages()}, coco()], ids=["own", "collage", "coco"]
)
def test_what_is_written_is_read_back(files, tmp_path, content):
    before = read_scanpaths(files(content))
    write_scanpaths(before, tmp_path / "again" / "own.json")
    after = read_scanpaths(tmp_path / "again" / "own.json")
    assert list(before.scenes) == list(after.scenes)
    for name, scene in before.scenes.items():
        for key in ("size", "target", "rows", "columns", "layout", "sought"):
            assert getattr(after.scenes[name], key) == getattr(scene, key)
        assert [o.name for o in after.scenes[name].objects] == [o.name for o in scene.objects]
        np.testing.assert_allclose(after.scenes[name].boxes, scene.boxes, atol=1e-3)  # they are written with 3 digits
    for one, other in zip(before.trials, after.trials, strict=True):
        assert (one.scene, one.person, one.objects.tolist()) == (other.scene, other.person, other.objects.tolist())
        np.testing.assert_allclose(other.xy, one.xy, atol=1e-3)
        assert (one.duration is None) == (other.duration is None)
        if one.duration is not None:
            np.testing.assert_allclose(other.duration, one.duration)


def test_tables_are_read_like_json(tmp_path):
    (tmp_path / "scenes.csv").write_text("scene,width,height,target,layout\na,50,10,1,shelf\nb,50,10,,\n")
    rows = [f"{s},{k},{20 * k},0,10,10,{name},{k}.5" for s in "ab" for k, name in enumerate(("cup", "pan"))]
    (tmp_path / "objects.csv").write_text("scene,object,x,y,width,height,name,feature_1\n" + "\n".join(rows) + "\n")
    fixations = "scene,person,index,x,y,duration\na,Ann,2,25,5,0.3\na,Ann,1,1,2,0.2\nb,Bob,1,29,5,\n"
    (tmp_path / "fixations.csv").write_text(fixations)
    dataset = read_scanpaths(tmp_path)
    a, b = dataset.scenes["a"], dataset.scenes["b"]
    assert (a.target, a.layout, a.sought, b.target, b.layout, b.sought) == (1, "shelf", "pan", None, "b", None)
    assert a.features.tolist() == [[0.5], [1.5]]
    assert [t.objects.tolist() for t in dataset.trials] == [[0, 1], [1]]  # in the order of the index
    assert dataset.trials[0].duration.tolist() == [0.2, 0.3]
    assert dataset.trials[1].duration is None


TABLES = {
    "scenes.csv": "scene,width,height\na,50,10\n",
    "objects.csv": "scene,object,x,y,width,height\na,0,0,0,10,10\n",
    "fixations.csv": "scene,person,index,x,y\na,Ann,1,5,5\n",
}


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("scenes.csv", "scene,width\na,50\n", "height is missing"),
        ("scenes.csv", "scene,width,height\na,wide,10\n", "line 2: width must be a number, got 'wide'"),
        ("scenes.csv", "scene,width,height\na,nan,10\n", "line 2: width must be a whole number, got 'nan'"),
        ("scenes.csv", "scene,width,height\na,50,10\na,50,10\n", "each scene must be listed once, a is listed 2 times"),
        ("scenes.csv", "scene,width,height\nb,50,10\n", r"line 2: objects of b must be numbered 0, 1, 2 \.\.\., got 0"),
        ("objects.csv", "scene,object,x,y,width,height\na,1,0,0,10,10\n", "must be numbered 0, 1, 2"),
        ("objects.csv", "scene,object,x,y,width,height\na,0,0,0,10,-1\n", "line 2: box must be .* sides above 0"),
        ("objects.csv", "scene,object,x,y,width,height\na,0,0,0,10,10,7\n", "line 2 must have 6 cells"),
        ("fixations.csv", "scene,person,index,x,y\na,Ann,1,5\n", "line 2 must have 5 cells"),
        ("fixations.csv", "scene,person,index,x,y\na,Ann,1,5,5\na,Ann,1,6,6\n", "Ann on a must have each index once"),
        ("fixations.csv", "scene,person,index,x,y\na,Ann,1,5,5\na,Ann,2,6,\n", "the same columns filled in every row"),
        ("fixations.csv", "scene,person,index,object\na,Ann,1,3\n", "objects of Ann on a must be 0 to 0, got 3 to 3"),
        ("fixations.csv", "scene,person,index,object\na,Ann,1,0.5\n", "must have whole numbers from 0 as objects"),
        ("fixations.csv", "scene,person,index,x,y\nz,Ann,1,5,5\n", "on scene z, which is not listed"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, table, text, message):
    for name, content in {**TABLES, table: text}.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_scanpaths(tmp_path)


def test_a_table_that_is_no_text_is_named(tmp_path):
    for name, content in TABLES.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "objects.csv").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"objects\.csv must be a table in UTF-8"):
        read_scanpaths(tmp_path)
    (tmp_path / "objects.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"objects\.csv must have the columns"):
        read_scanpaths(tmp_path)


def test_a_fixation_is_on_the_smallest_box_around_it_or_else_on_the_nearest():
    boxes = [(0, 0, 100, 100), (10, 10, 20, 20), (200, 0, 50, 100), (300, 0, 50, 40)]
    scene = Scene("s", (400, 100), tuple(SceneObject(str(k), box) for k, box in enumerate(boxes)))
    xy = np.array([[15, 15], [50, 50], [140, 50], [160, 50], [275, 80], [275, 20], [399, 99]])
    # (275, 80) is 25 px from box 2 and 47 px from box 3; (275, 20) is 25 px from both, the middle of box 3 is nearer
    assert map_fixations(scene, xy).tolist() == [1, 0, 0, 2, 2, 3, 3]
    assert map_fixations(scene, xy, mapping="inside").tolist() == [1, 0, -1, -1, -1, -1, -1]
    assert map_fixations(scene, xy, mapping="inside", margin=30).tolist() == [1, 0, -1, -1, 2, 3, -1]


def test_fixations_between_objects_can_be_left_out_and_are_counted(files):
    folder = files({"own.json": own()})
    dataset = read_scanpaths(folder, mapping="inside")
    assert dataset.trials[0].objects.tolist() == [0, 2]
    assert dataset.trials[0].xy.tolist() == [[1, 2], [44, 4]]
    assert dataset.notes == ("1 fixations left out, farther than 0 px from every object",)
    content = own()
    content["trials"][0] |= {"x": [14, 15, 16]}
    dataset = read_scanpaths(files({"own.json": content}), mapping="inside")
    assert [t.person for t in dataset.trials] == ["Bob"]
    assert "1 trials left out, because they have no fixation on an object" in dataset.notes


def free(*trials: dict[str, Any]) -> dict[str, Any]:
    """A picture of 1000 x 600 pixels with objects in a grid, and trials on it."""
    objects = [{"box": [100 + 200 * (k % 4), 100 + 200 * (k // 4), 100, 100]} for k in range(8)]
    scene = {"scene": "a", "width": 1000, "height": 600, "target": 3, "objects": objects}
    return {"format": "voxelwave scanpaths", "version": 1, "scenes": [scene], "trials": list(trials)}


def looked(person: object, x: list[float], y: list[float], **more: Any) -> dict[str, Any]:
    return {"scene": "a", "person": person, "x": x, "y": y, **more}


def test_one_person_in_several_spellings_is_one_person(files):
    paths = [[150 + k, 350 + k, 750] for k in range(6)]
    people = [1, 1.0, "1 ", "p1", "p1 ", "01"]
    given = free(*(looked(person, x, [150, 150, 150]) for person, x in zip(people, paths, strict=True)))
    assert [t.person for t in read_scanpaths(files({"s.json": given})).trials] == ["1", "1", "1", "p1", "p1", "01"]
    search = coco()
    search["fixations.json"] += [
        {**search["fixations.json"][0], "subject": 3.0, "X": [60.0, 70.0], "Y": [70.0] * 2, "T": [200] * 2}
    ]
    assert [t.person for t in read_scanpaths(files(search)).trials] == ["3", "4", "3"]


def test_people_whose_names_are_alike_are_noted(files):
    people = ["01", 1, "P2", "p2", "\ufeffp3", "p3"]
    paths = [[150 + k, 350 + k, 750] for k in range(6)]
    given = free(*(looked(person, x, [150, 150, 150]) for person, x in zip(people, paths, strict=True)))
    found = read_scanpaths(files({"s.json": given}))
    assert [t.person for t in found.trials] == ["01", "1", "P2", "p2", "p3", "p3"]
    assert found.notes[-1].endswith("count as different people: 01 and 1, P2 and p2")


def test_a_coco_search_on_another_screen_or_in_seconds_is_refused(files):
    search = coco()
    search["fixations.json"][0] |= {"X": [2000.0, 2100.0, 2500.0]}
    with pytest.raises(ValueError, match="most of them, lie beside the screen of 1680 x 1050 px"):
        read_scanpaths(files(search))
    search = coco()
    for trial in search["fixations.json"]:
        trial["T"] = [t / 1000 for t in trial["T"]]
    with pytest.raises(ValueError, match="T of COCO-Search18 in milliseconds"):
        read_scanpaths(files(search))


@pytest.mark.parametrize(
    ("x", "y", "more", "complaint"),
    [
        ([0.15, 0.35, 0.75], [0.25, 0.25, 0.25], {}, "must be pixels; all fixations of p on a lie between 0 and 1"),
        ([-500, 5000, 750], [150, 9000, 150], {}, "2 of 3 fixations lie outside of their picture"),
        ([-350, -150, 250], [-150, -150, -150], {}, "is the picture's size right, and the origin"),
        ([150, 350, 750], [150] * 3, {"duration": [250, 300, 280]}, "duration must be in seconds.*are they milli"),
        ([150, 350, 750], [150] * 3, {"duration": [2.5e-4, 3e-4, 2e-4]}, "duration must be in seconds.*multiply"),
        ([150, 350, 750], [150] * 3, {"onset": [0, 0.9, 0.3]}, "onset of p on a must not fall"),
        ([150, 350, 750], [150] * 3, {"onset": [0, 310, 620]}, "onset must be in seconds.*are they milliseconds"),
    ],
)
def test_positions_and_times_in_another_unit_are_refused(files, x, y, more, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_scanpaths(files({"s.json": free(looked("p", x, y, **more))}))


def test_a_fixation_far_outside_and_a_smaller_picture_are_noted(files):
    given = read_scanpaths(files({"s.json": free(looked("p", [150, 350, 1400], [150, 150, 150]))}))
    assert given.notes == ("1 of 3 fixations lie far outside of their picture, up to 400 px",)
    trials = [looked(f"p{k}", [50 + 9 * k, 400 - 7 * k, 300], [90, 30 + k, 300]) for k in range(20)]
    given = read_scanpaths(files({"s.json": free(*trials)}))
    assert "all 60 fixations lie in the left 40 % and upper 50 %" in given.notes[0]
    percent = [looked(f"q{k}", [15, 35 + k, 75], [25, 25 + k, 25]) for k in range(2)]
    assert "all 6 fixations lie in the left" in read_scanpaths(files({"s.json": free(*percent)})).notes[0]
    near = read_scanpaths(files({"s.json": free(looked("p", [-20, 350, 1010], [150, 150, 150]))}))
    assert near.notes == ()  # within a tracker's error


def test_a_person_may_have_two_trials_on_a_scene_in_a_table(tmp_path):
    (tmp_path / "scenes.csv").write_text("scene,width,height\n1,50,10\n")
    (tmp_path / "objects.csv").write_text("scene,object,x,y,width,height\n1.0,0,0,0,10,10\n1.0,1,20,0,10,10\n")
    rows = "1,7,0,1,1,\n1,7.0,1,22,1,\n1,7,0,24,3,2\n1,7 ,1,4,3,2\n"
    (tmp_path / "fixations.csv").write_text(f"scene,person,index,x,y,trial\n{rows}")
    given = read_scanpaths(tmp_path)
    assert [(t.person, t.objects.tolist()) for t in given.trials] == [("7", [0, 1]), ("7", [1, 0])]


def test_copies_of_a_trial_are_refused_or_dropped(files):
    content = own()
    content["trials"].append({**content["trials"][0], "person": "Eve"})
    folder = files({"own.json": content})
    with pytest.raises(ValueError, match="the paths of Ann and Eve on a are the same"):
        read_scanpaths(folder)
    dataset = read_scanpaths(folder, duplicates="drop")
    assert [t.person for t in dataset.trials] == ["Ann", "Bob"]
    assert "the paths of Ann and Eve on a are the same: the second is left out" in dataset.notes


def test_the_faulty_published_preprocessing_is_noticed(files):
    # the person of every collage had been replaced by the last one
    content = collages()
    for record in content.values():
        record["fixations"]["1"] = [[5, 5], [250, 150], [10, 20]]
        record["fixations"]["2"] = record["fixations"]["1"]
    with pytest.raises(ValueError, match=r"the paths of 1 and 2 on 0\.jpg are the same"):
        read_scanpaths(files({"c.json": content}))


def test_equal_paths_of_objects_or_of_two_fixations_are_no_copies(files):
    content = own()
    content["trials"] = [
        {"scene": "a", "person": "Ann", "objects": [0, 1, 2, 1]},
        {"scene": "a", "person": "Bob", "objects": [0, 1, 2, 1]},
        {"scene": "a", "person": "Eve", "x": [1, 2], "y": [1, 2]},
        {"scene": "a", "person": "Joe", "x": [1, 2], "y": [1, 2]},
    ]
    assert len(read_scanpaths(files({"own.json": content}))) == 4


def test_collages_get_the_grid_of_their_target_boxes(files):
    dataset = read_scanpaths(files({"c.json": collages()}))
    scene = dataset.scenes["4.jpg"]
    assert (scene.rows, scene.columns, scene.target, scene.sought, scene.size) == (2, 3, 4, "target_0", (300, 200))
    middles = [[50, 50], [150, 50], [250, 50], [50, 150], [150, 150], [250, 150]]
    np.testing.assert_allclose(scene.centres, middles, atol=1e-3)
    assert dataset.trials[9].objects.tolist() == [1, 4]
    assert dataset.notes[0].startswith("grid of 2 rows and 3 columns from 12 target boxes")


def test_the_target_of_a_collage_has_the_same_box_as_all_other_covers(files):
    content = collages()
    content["2.jpg"]["ground_truth"] = [{"xmin": 205, "xmax": 299, "ymin": 2, "ymax": 99}]
    scene = read_scanpaths(files({"c.json": content})).scenes["2.jpg"]
    assert np.ptp(scene.boxes[:, 2:], axis=0).tolist() == [0, 0]
    assert len({o.name for k, o in enumerate(scene.objects) if k != scene.target}) == 1


def test_few_collages_need_rows_and_columns(files):
    folder = files({"c.json": collages(4)})
    with pytest.raises(ValueError, match=r"found from 10 boxes or more, got 4: give rows and columns"):
        read_scanpaths(folder)
    assert read_scanpaths(folder, rows=2, columns=3).scenes["3.jpg"].target == 3
    with pytest.raises(ValueError, match="must be given together"):
        read_scanpaths(folder, rows=2)


def test_coco_boxes_and_fixations_meet_on_the_screen(files):
    dataset = read_scanpaths(files(coco()))
    present, absent = dataset.scenes["p.jpg/cup"], dataset.scenes["p.jpg/oven"]
    assert [o.box for o in present.objects] == [(40, 40, 80, 80), (800, 400, 200, 200)]  # twice as large as the picture
    assert (present.target, present.sought, absent.target, absent.sought) == (0, "cup", None, "oven")
    assert present.layout == absent.layout == "p.jpg"
    assert present.size == (1680, 1050)
    first = dataset.trials[0]
    assert (first.person, first.objects.tolist(), first.duration.tolist()) == ("3", [1, 0], [0.2, 0.35])
    assert dataset.notes == ("1 fixations left out, beside the screen of 1680 x 1050 px",)


def test_a_wide_picture_stands_in_the_middle_of_the_screen_or_in_its_corner(files):
    content = coco()
    content["boxes.json"]["images"][0] |= {"width": 840, "height": 315}  # twice as large: 1680 x 630, 210 px free above
    for trial in content["fixations.json"]:
        trial["bbox"] = [40, 250, 80, 80]
    folder = files(content)
    assert read_scanpaths(folder).scenes["p.jpg/cup"].objects[0].box == (40, 250, 80, 80)
    with pytest.raises(ValueError, match="check display and padding"):
        read_scanpaths(folder, padding="corner")


def test_searches_by_person_are_read_on_the_cells_of_a_grid(files):
    found = read_scanpaths(files({"people.json": people_search()}) / "people.json")
    assert [scene.layout for scene in found.scenes.values()] == ["room", "room"]
    assert [scene.target for scene in found.scenes.values()] == [47, 0]
    first, second = found.trials
    assert first.objects.tolist() == [0, 47, 1]  # the third one is at 10.4, 9.6 if counted from 0
    assert second.objects.tolist() == [20, 9]
    np.testing.assert_allclose(first.duration, [0.2, 0.15, 0.3])
    assert any("1 trials without fixations" in note for note in found.notes)
    coarse = read_scanpaths(files({"people.json": people_search()}) / "people.json", rows=2, columns=2)
    assert coarse.trials[0].objects.tolist() == [0, 3, 0]


def test_what_is_none_of_the_formats_is_refused(tmp_path, files):
    with pytest.raises(FileNotFoundError):
        read_scanpaths(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("fixations")
    with pytest.raises(ValueError, match="must be JSON"):
        read_scanpaths(tmp_path / "text.json")
    with pytest.raises(ValueError, match="COCO boxes"):
        read_scanpaths(files({}))
    with pytest.raises(ValueError, match="mapping must be nearest or inside, got 'around'"):
        read_scanpaths(tmp_path / "text.json", mapping="around")


def test_crops_are_cut_by_the_boxes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    objects = SceneObject("a", (2, 3, 4, 5)), SceneObject("b", (15.5, -2, 9, 4))
    scene = with_crops(Scene("s", (20, 10), objects, image=tmp_path / "p.png"))
    np.testing.assert_array_equal(scene.objects[0].crop, pixels[3:8, 2:6])
    np.testing.assert_array_equal(scene.objects[1].crop, pixels[:2, 15:])  # the part outside the picture is cut off
    with pytest.raises(ValueError, match=r"must have 30 x 10 pixels like scene s, got 20 x 10"):
        with_crops(Scene("s", (30, 10), objects, image=tmp_path / "p.png"))
    with pytest.raises(ValueError, match="must name an image"):
        with_crops(Scene("s", (20, 10), objects))


def test_the_example_of_the_description_is_read(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "scanpath_format.md"
    example = re.search(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "example.json").write_text(example.group(1))
    dataset = read_scanpaths(tmp_path / "example.json")
    assert [t.objects.tolist() for t in dataset.trials] == [[1, 0, 1], [0, 1]]


@pytest.fixture(scope="module")
def amazon(shared_data):
    return read_scanpaths(shared_data / "gaze" / "amazon_covers" / "Amazon_part.json")


def test_amazon_collages_lie_on_the_grid_that_all_hundred_show(amazon):
    scene = next(iter(amazon.scenes.values()))
    assert (len(amazon.scenes), len(amazon), len(scene), scene.rows, scene.columns) == (80, 480, 84, 6, 14)
    x, y = scene.centres[:14, 0], scene.centres[::14, 1]
    # the fit to all 100 collages is 110.5 + 179.36 column and 140.4 + 263.21 row; 80 of them move it by few pixels
    np.testing.assert_allclose(x, 110.5 + 179.36 * np.arange(14), atol=3)
    np.testing.assert_allclose(y, 140.4 + 263.21 * np.arange(6), atol=3)


def test_amazon_trials_are_distinct_and_have_the_described_lengths(amazon):
    assert len({(t.scene, t.xy.tobytes()) for t in amazon.trials}) == 480
    lengths = amazon.lengths
    assert (lengths.sum(), lengths.min(), np.median(lengths), lengths.max()) == (7080, 2, 10, 91)
    last = [t.objects[-1] == amazon.scenes[t.scene].target for t in amazon.trials]
    assert np.mean(last) == pytest.approx(0.867, abs=0.02)  # 0.867 over all 600
    assert len(amazon.without_long_trials()) == 468
    assert {s.sought for s in amazon.scenes.values()} == {f"target_{k}" for k in range(5)}


def test_amazon_people_search_and_agree_as_described(amazon):
    kept = amazon.without_long_trials()
    found = [behaviour(t.objects, amazon.scenes[t.scene].target) for t in kept.trials]
    means = {key: np.mean([statistics[key] for statistics in found]) for key in found[0]}
    # of the 585 trials on all 100 collages; 468 of them are ours
    described = {"correct": 0.877, "search": 0.785, "refix": 0.172, "revisit": 0.043}
    assert {key: means[key] for key in described} == pytest.approx(described, abs=0.01)
    assert means["length"] == pytest.approx(12.89, abs=0.4)
    pairs = [(a.objects, b.objects) for a, b in itertools.combinations(kept.trials, 2) if a.scene == b.scene]
    assert np.mean([sequence_score(a, b) for a, b in pairs]) == pytest.approx(0.210, abs=0.005)
    assert np.mean([edit_distance(a, b) for a, b in pairs]) == pytest.approx(14.2, abs=0.5)
