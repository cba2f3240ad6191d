"""Completion scripts, run in the shells that are installed."""

import shutil
import subprocess

import pytest

from voxelwave.apps import cli


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("voxelwave registration ap", ["apply"]),
        ("voxelwave inf", ["info"]),
        ("voxelwave restoration restore --dev", ["--device"]),
        ("voxelwave restoration restore --device cu", ["cuda"]),
        ("voxelwave completion --j", ["--json"]),
    ],
)
def test_bash_completes_verbs_options_and_choices(words, completed, capsys, tmp_path):
    listed = words.split()
    ask = f'COMP_WORDS=({words}); COMP_CWORD={len(listed) - 1}; _voxelwave; printf "%s\\n" "${{COMPREPLY[@]}}"'
    (tmp_path / "completion").write_text(script("bash", capsys))
    run = subprocess.run(
        ["bash", "-c", f". ./completion; {ask}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_is_accepted_by_its_shell_and_names_every_verb(shell, capsys, tmp_path):
    text = script(shell, capsys)
    assert [v for verbs in cli.COMMANDS.values() for v in verbs if v not in text] == []
    if shutil.which(shell) is not None:
        (tmp_path / "completion").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "completion")], check=True)
