"""The command line: help without delay, exit codes, and one clear line for each mistake of a user."""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from voxelwave.apps import cli
from voxelwave.apps.arguments import parse_arguments
from voxelwave.apps.registration.options import Train
from voxelwave.runs.exit import ERROR, USAGE
from voxelwave.runs.files import output_lock


def sample(
    moving: Path, fixed: Path, *, output: Path, kind: Literal["a", "b"] = "a", fast: bool = False, seed: int = 0
):
    """Do a thing.

    Args:
        moving: the one that moves.
        fixed: the one that stays.
        output: where to.
        kind: which.
        fast: quickly.
        seed: of chance.
    """


def parse(*words: str) -> dict:
    return parse_arguments(sample, list(words), prog="voxelwave sample")


def test_words_become_typed_arguments():
    arguments = parse("m.nii", "f.nii", "-o", "out", "--fast", "--seed", "3")
    assert arguments == {
        "moving": Path("m.nii"),
        "fixed": Path("f.nii"),
        "output": Path("out"),
        "kind": "a",
        "fast": True,
        "seed": 3,
    }


@pytest.mark.parametrize("words", [("--fast", "m", "f", "-o", "x"), ("m", "f", "-o", "x", "--fast", "true")])
def test_a_flag_stands_anywhere(words):
    assert parse(*words)["fast"] is True
    assert parse(*words)["moving"] == Path("m")


def test_a_verb_without_required_words_needs_none():
    def plain(*, output: Path = Path("out")) -> None:
        """Do it."""

    assert parse_arguments(plain, [], prog="voxelwave plain") == {"output": Path("out")}


def test_a_config_file_gives_options_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("kind: b\nseed: 7\n")
    arguments = parse("--config", str(config), "m", "f", "-o", "x", "--seed", "8")
    assert (arguments["kind"], arguments["seed"]) == ("b", 8)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("m",), "FIXED"),
        (("m", "f"), "output"),
        (("m", "f", "-o", "x", "--nope"), "--nope"),
        (("m", "f", "-o", "x", "--kin", "b"), "--kin"),  # no abbreviations
        (("m", "f", "-o", "x", "--kind", "c"), "kind"),
        (("m", "f", "-o", "x", "--seed", "one"), "seed"),
    ],
)
def test_wrong_words_are_a_usage_error_that_names_them(words, complaint):
    with pytest.raises(cli.UsageError, match=complaint):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--windows", "{seconds: .inf}"], "--windows: seconds"),
        (["--windows", "{band: [1, .nan]}"], "--windows: band"),
    ],
)
def test_an_infinite_number_is_wrong_usage(words, place, capsys, tmp_path):
    study = tmp_path / "subjects.tsv"
    study.write_text("subject\tfile\tlabel\n")
    assert cli.main(["eeg", "nested-cv", str(study), "-o", str(tmp_path / "out"), *words]) == USAGE
    assert f"{place} must be a finite number" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["nonsense"], ["registration", "nonsense"], ["registration", "register"]])
def test_wrong_usage_exits_2(words, capsys):
    assert cli.main(words) == USAGE


def test_bad_input_is_one_line_and_exit_1(capsys, tmp_path):
    missing = str(tmp_path / "missing.nii.gz")
    assert cli.main(["registration", "register", missing, missing, "-o", str(tmp_path / "out")]) == ERROR
    error = capsys.readouterr().err.strip()
    assert "missing.nii.gz" in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_every_verb_is_there_and_documented():
    commands = [c for verbs in cli.COMMANDS.values() for c in verbs.values()] + list(cli.TOP_LEVEL.values())
    for verb in commands:
        module, _, name = verb.options.partition(":")
        assert getattr(importlib.import_module(f"voxelwave.apps.{module}"), name).__doc__, verb


HEAVY = [
    "torch",
    "monai",
    "ants",
    "lightning",
    "nibabel",
    "pydicom",
    "matplotlib",
    "scipy",
    "sklearn",
    "skimage",
    "mne",
    "braindecode",
    "jinja2",
]
VERBS = [[field, verb] for field, verbs in cli.COMMANDS.items() for verb in verbs] + [[verb] for verb in cli.TOP_LEVEL]
RUN_EACH = """
import json, sys
from voxelwave.apps.cli import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    loaded = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
    print("\\n" + json.dumps([words, code, loaded]))
"""


def _run_each(commands: list[list[str]]) -> list[tuple[list[str], int, list[str]]]:
    """Run commands one by one in a new process; return output, exit code, and the heavy packages loaded so far."""
    words = [sys.executable, "-c", RUN_EACH, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[[")]


def test_help_of_every_verb_loads_no_heavy_package():
    results = _run_each([["--help"], ["registration", "--help"], *([*verb, "--help"] for verb in VERBS)])
    assert len(results) == len(VERBS) + 2
    assert [(words, loaded) for words, code, loaded in results if code != 0 or loaded] == []


def test_a_missing_input_is_reported_before_a_heavy_package_loads():
    missing, out, onnx = "missing/input", ["-o", "never-written"], ["-o", "never-written.onnx"]
    weights = ["--weights", "denoise-grey"]
    results = _run_each(
        [
            ["registration", "register", missing, missing, *out],
            ["registration", "apply", missing, missing, "--like", missing, *out],
            ["registration", "train", "--pairs", missing, *out],
            ["registration", "evaluate", missing, *out],
            ["registration", "benchmark", missing, *out],
            ["restoration", "restore", "-i", missing, *weights, *out],
            ["restoration", "train", missing, missing, *out],
            ["restoration", "evaluate", missing, "--sigma", "25", "-o", "never-written.tsv"],
            ["restoration", "export", missing, *out],
            ["restoration", "export", "--weights", "missing.safetensors", *onnx],
            ["registration", "export", "--weights", missing, "--size", "32,32,32", *onnx],
            *([field, "export", "--weights", missing, *onnx] for field in ("eeg", "scanpath")),
            ["eeg", "train", missing, *out],
            ["eeg", "diagnose", "-i", missing, "--weights", missing, *out],
            ["eeg", "audit", missing],
            ["eeg", "nested-cv", missing, *out],
            ["eeg", "explain", missing, *out],
            ["scanpath", "train", missing, *out],
            ["scanpath", "predict", "-i", missing, *out, "--weights", "planted-observer"],
            ["scanpath", "evaluate", missing, *out],
            ["scanpath", "cross-validate", missing, *out],
            ["batch", "page", missing],
            ["report", missing],
        ]
    )
    assert [(words, code, loaded) for words, code, loaded in results if code != ERROR or loaded] == []


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_an_output_below_a_file_is_reported_first(verb, tmp_path, capsys):
    options = cli._load((cli.COMMANDS[verb[0]][verb[1]] if len(verb) > 1 else cli.TOP_LEVEL[verb[0]]).options)
    parameters = inspect.signature(options).parameters
    if "output" not in parameters:
        pytest.skip("writes nothing that the user names")
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "out"
    given = {n: Path("missing") for n, p in parameters.items() if p.default is p.empty} | {"output": below}
    with pytest.raises(ValueError, match=r"out cannot be written: .*file is a file, not a folder"):
        options(**given).check()


def _messages(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([*verb.split(), *words]) == USAGE
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--degradation", "gaussian"], "--degradation must be a mapping, such as {name: value}, got gaussian;"),
        (["--degradation", ""], "--degradation must be a mapping, such as {name: value}, got nothing;"),
        (["--degradation", "[1, 2]"], "--degradation must be a mapping, such as {name: value}, got [1, 2];"),
        (["--stages", "[{steps: many}]"], "--stages must be a list of mappings, such as [{name: value}], got [{'steps"),
        (["--seed", ""], "--seed must be a whole number, got nothing;"),
        (["--threads", "1e400"], "--threads must be a whole number, got 1e400;"),
        (["--margin", "x" * 200], f"--margin must be a whole number, got {'x' * 77}...;"),
        (["more", "words"], "there are more words than the command takes: more words;"),
    ],
)
def test_a_wrong_value_is_explained_in_plain_words(words, complaint, capsys):
    assert complaint in _messages("restoration train", ["in", "val", "-o", "out", *words], capsys)


def test_a_list_is_explained_by_an_example(capsys):
    said = _messages("registration benchmark", ["data", "-o", "out", "--spacings", "2"], capsys)
    assert "--spacings must be a list of numbers, such as [1,0.5], got 2;" in said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seeed: 1\n", "gives seeed, an option that this command does not have; did you mean seed?"),
        ("train_images: 3\n", "TRAIN_IMAGES must be a path, got a number"),
        ("output: [a]\n", "--output must be a path, got a list"),
        ("module: abc\n", "--module must be a mapping, such as {name: value}, got abc"),
        ("module: {network: [1\n", "run.yaml is not a YAML file of options: while parsing a flow sequence, line 1"),
        ("a: !!python/object/apply:os.system [x]\n", "run.yaml is not a YAML file of options: could not determine a"),
    ],
)
def test_a_wrong_config_file_is_explained_in_plain_words(text, complaint, capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert complaint in _messages("restoration train", ["--config", str(config), "in", "val", "-o", "out"], capsys)


def test_a_config_file_that_is_not_there_is_named(capsys, tmp_path):
    missing = str(tmp_path / "missing.yaml")
    message = _messages("eeg train", ["study", "-o", "out", "--config", missing], capsys)
    assert message.startswith("voxelwave: usage: --config must be a YAML file; file does not exist")
    assert missing in message


@pytest.mark.slow
@pytest.mark.parametrize("value", ["abc", "", "{a: 1}", "[1, 2]", "1e400", "{", "null", "- a", "3.5"])
def test_no_message_about_an_option_holds_the_words_of_the_parser(value):
    said, words = [], ("Union", "subtype", "Parser key", "<class", "typing.", "NoneType", "Given value", "PathLike")
    for verb in [v for verbs in cli.COMMANDS.values() for v in verbs.values()] + list(cli.TOP_LEVEL.values()):
        options = cli._load(verb.options)
        parameters = inspect.signature(options).parameters
        needed = [w for p in parameters.values() if p.default is p.empty for w in _words_for(p, "x")]
        for parameter in parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            try:
                parse_arguments(options, [*needed, *_words_for(parameter, value)], prog="voxelwave")
            except cli.UsageError as error:
                said.append(str(error))
    assert len(said) > 50 or value in ("null", "{a: 1}")
    assert [text for text in said if any(word in text for word in words)] == []


def _words_for(parameter: inspect.Parameter, value: str) -> list[str]:
    if parameter.kind is not parameter.KEYWORD_ONLY:
        return [value]
    return [f"--{parameter.name.replace('_', '-')}={value}"]


@pytest.mark.parametrize("field", ["registration", "restoration", "eeg", "scanpath"])
def test_a_second_training_in_one_folder_is_refused(field, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    data = str(tmp_path / "data")
    words = {"registration": ["--pairs", data], "restoration": [data, data]}.get(field, [data])
    with output_lock(tmp_path / "out"):
        assert cli.main([field, "train", *words, "-o", str(tmp_path / "out")]) == ERROR
    assert "another run is writing to" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--size", "32,32,32"], ["--size=32,32,32"], ["--size", "[32, 32, 32]"]])
def test_a_list_needs_no_brackets(words):
    arguments = parse_arguments(Train, ["--pairs", "a", "-o", "b", *words], prog="voxelwave registration train")
    assert tuple(arguments["size"]) == (32, 32, 32)


@pytest.mark.parametrize("name", ["atlas_to_patient", "atlas_to_patient.yaml"])
def test_a_supplied_configuration_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--pairs", "a", "-o", "b", "--config", name]
    assert parse_arguments(Train, words, prog="voxelwave registration train")["task"] == "atlas-to-patient"
    (tmp_path / name).write_text("epochs: 3\n")  # a file of this name comes first
    assert parse_arguments(Train, words, prog="voxelwave registration train")["epochs"] == 3


def test_an_unknown_option_is_answered_with_a_near_one_only(capsys):
    words = ["restoration", "restore", "a.png", "-o", "b.png"]
    assert cli.main([*words, "--weigths", "x"]) == USAGE
    assert "there is no option --weigths; did you mean --weights?" in capsys.readouterr().err
    assert cli.main([*words, "--bogus", "x"]) == USAGE
    assert "did you mean" not in capsys.readouterr().err


def test_the_overview_and_the_list_of_a_field_name_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for field, verbs in cli.COMMANDS.items():
        assert cli.main([field, "--help"]) == 0
        listed = capsys.readouterr().out
        assert all(
            f"  {verb:<16}{entry.summary}" in text for verb, entry in verbs.items() for text in (overview, listed)
        )


def test_an_unknown_configuration_is_answered_with_the_nearest(capsys):
    message = _messages("eeg train", ["study", "-o", "out", "--config", "adhdeepnet_smal"], capsys)
    assert "did you mean adhdeepnet_small?" in message
    assert len(message.splitlines()) == 1


def test_mps_is_answered_in_plain_words(capsys):
    message = _messages("eeg train", ["study", "-o", "out", "--device", "mps"], capsys)
    assert "got mps; Apple's mps is not supported: use cpu;" in message


@pytest.mark.parametrize("verb", ["restoration restore", "eeg diagnose", "scanpath predict"])
def test_the_input_is_the_first_word_or_an_option(verb, capsys, tmp_path):
    out = ["-o", str(tmp_path / "out"), "--weights", "x"]
    for words in (["missing"], ["-i", "missing"]):
        assert cli.main([*verb.split(), *words, *out]) == ERROR
        assert "missing" in capsys.readouterr().err
    assert "(or --input) must be given" in _messages(verb, out, capsys)
    assert "are the same: give one" in _messages(verb, ["a", "-i", "b", *out], capsys)


def test_the_overview_names_the_version_option(capsys):
    assert cli.main(["--help"]) == 0
    assert "--version" in capsys.readouterr().out


TRAININGS = {
    "registration": (["--pairs", "DATA"], "checkpoints/last.ckpt"),
    "restoration": (["DATA", "DATA"], "last.ckpt"),
    "eeg": (["DATA"], "last.ckpt"),
    "scanpath": (["DATA"], "last.ckpt"),
}


@pytest.mark.parametrize("field", TRAININGS)
def test_a_folder_with_a_training_is_refused_unless_it_is_to_be_overwritten(field, tmp_path, capsys):
    words, checkpoint = TRAININGS[field]
    (tmp_path / "data").mkdir()
    (tmp_path / "out" / checkpoint).parent.mkdir(parents=True)
    (tmp_path / "out" / checkpoint).write_text("the earlier training")
    words = [
        field,
        "train",
        *(str(tmp_path / "data") if w == "DATA" else w for w in words),
        "-o",
        str(tmp_path / "out"),
    ]
    assert cli.main(words) == USAGE
    assert "begin anew with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / checkpoint).exists()
    assert cli.main([*words, "--overwrite", "--resume"]) == USAGE
    assert "do not go together" in capsys.readouterr().err
    assert (tmp_path / "out" / checkpoint).exists()
    with output_lock(tmp_path / "out"):  # another run is writing there
        assert cli.main([*words, "--overwrite"]) == ERROR
    assert (tmp_path / "out" / checkpoint).exists()
    assert cli.main([*words, "--overwrite"]) == ERROR  # there are no data, so the earlier training stays
    assert (tmp_path / "out" / checkpoint).read_text() == "the earlier training"


def test_an_earlier_checkpoint_goes_when_a_new_one_is_there(tmp_path):
    options = Train(pairs=tmp_path, output=tmp_path, overwrite=True)
    place = tmp_path / "checkpoints" / "last.ckpt"
    place.parent.mkdir()
    place.write_text("earlier")
    with options.earlier_set_aside():
        assert not place.exists()
        place.write_text("new")
    assert [path.name for path in place.parent.iterdir()] == ["last.ckpt"]
    assert place.read_text() == "new"
