"""Completion scripts, run in the shells that are installed."""

import shutil
import subprocess

import pytest

from voxelwave.apps import cli


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


CASES = [
    ("voxelwave registration ap", ["apply"]),
    ("voxelwave inf", ["info"]),
    ("voxelwave restoration restore --dev", ["--device"]),
    ("voxelwave restoration restore --device cu", ["cuda"]),
    ("voxelwave completion --j", ["--json"]),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(("words", "completed"), CASES)
def test_bash_completes_verbs_options_and_choices(words, completed, capsys, tmp_path):
    listed = words.split()
    ask = f'COMP_WORDS=({words}); COMP_CWORD={len(listed) - 1}; _voxelwave; printf "%s\\n" "${{COMPREPLY[@]}}"'
    (tmp_path / "completion").write_text(script("bash", capsys))
    run = subprocess.run(
        ["bash", "-c", f". ./completion; {ask}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == completed


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
@pytest.mark.parametrize(("words", "completed"), CASES)
def test_fish_completes_verbs_options_and_choices(words, completed, capsys, tmp_path):
    (tmp_path / "completion").write_text(script("fish", capsys))
    ask = f"source completion; complete -C '{words}'"
    run = subprocess.run(["fish", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in run.stdout.splitlines()] == completed


# a terminal in which Tab is pressed; the candidates, before zsh chooses those that fit, are written to a file
_TERMINAL = """
zmodload zsh/zpty
zpty terminal zsh -f -i
zpty -w terminal 'autoload -Uz compinit; compinit -u -D; source ./completion'
zpty -w terminal 'compadd() { print -rl -- "$@" > added; builtin compadd "$@"; mv added candidates }; echo REA""DY'
zpty -r -m terminal line '*READY*'
zpty -w -n terminal "$1"$'\t'
for i in {1..100}; do [[ -e candidates ]] && break; sleep 0.1; done
zpty -d terminal
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize(("words", "completed"), CASES[::3])
def test_zsh_completes_verbs_options_and_choices(words, completed, capsys, tmp_path):
    (tmp_path / "completion").write_text(script("zsh", capsys))
    subprocess.run(["zsh", "-fc", _TERMINAL, "zsh", words], cwd=tmp_path, check=True, timeout=60)
    candidates = (tmp_path / "candidates").read_text().split()
    assert [word for word in candidates if word.startswith(words.split()[-1])] == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_is_accepted_by_its_shell_and_names_every_verb(shell, capsys, tmp_path):
    text = script(shell, capsys)
    assert [v for verbs in cli.COMMANDS.values() for v in verbs if v not in text] == []
    if shutil.which(shell) is not None:
        (tmp_path / "completion").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "completion")], check=True)
