"""`voxelwave completion`: completion scripts for shells, made from the table of commands and their options."""

import importlib
import inspect
import shlex

from ..arguments import choices_of
from ..commands import COMMANDS, TOP_LEVEL, Verb
from .options import Completion

_FILES = "-"  # the value of an option that is completed with file names


def completion(options: Completion) -> None:
    """Run the command."""
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](), end="")


def _verbs() -> dict[str, Verb]:
    """The words of each command -> its verb."""
    below = {f"{field} {verb}": entry for field, verbs in COMMANDS.items() for verb, entry in verbs.items()}
    return below | TOP_LEVEL


def _options(verb: Verb) -> dict[str, str]:
    """Each option of a command -> its choices, separated by spaces, or `_FILES`; "" for a flag."""
    module, _, name = verb.options.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(f"..{module}", __package__), name)).parameters
    found = {"--help": "", "--config": _FILES}
    for parameter in parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            flag = f"--{parameter.name.replace('_', '-')}"
            found[flag] = "" if parameter.annotation is bool else " ".join(choices_of(parameter.annotation)) or _FILES
    return found


def _words() -> str:
    return " ".join([*COMMANDS, *TOP_LEVEL, "--help", "--version"])


def _cases() -> str:
    """The branches of a `case` in bash and zsh that set `candidates` and `files` for a command."""
    lines = [f'    "{field} ") candidates="{" ".join(verbs)} --help" ;;' for field, verbs in COMMANDS.items()]
    for command, verb in _verbs().items():
        options = _options(verb)
        lines.append(f'    "{command} "*)')
        lines.append(f'      candidates="{" ".join(options)}"')
        lines.append('      case "$previous" in')
        for flag, values in options.items():
            if values not in ("", _FILES):
                lines.append(f'        {flag}) candidates="{values}"; files= ;;')
        with_files = "|".join([*(flag for flag, values in options.items() if values == _FILES), "-i", "-o"])
        lines += [f"        {with_files}) candidates=; files=1 ;;", "      esac ;;"]
    return "\n".join(lines)


def _function(body: str) -> str:
    return f"""_voxelwave_words() {{  # the words before the one that is completed
  local command previous="${{@: -1}}"
  candidates="{_words()}"; files=1
  shift
  command="$1 "
  case " {" ".join(COMMANDS)} " in *" $1 "*) [ $# -gt 1 ] && command="$1 $2 " ;; esac
  [ $# -eq 0 ] && {{ files=; return; }}
  case "$command" in
{body}
  esac
}}
"""


def _bash() -> str:
    return (
        _function(_cases())
        + """_voxelwave() {
  local candidates files word="${COMP_WORDS[COMP_CWORD]}"
  _voxelwave_words "${COMP_WORDS[@]:0:COMP_CWORD}"
  COMPREPLY=($(compgen -W "$candidates" -- "$word"))
  if [ -n "$files" ] && [[ $word != -* ]]; then COMPREPLY+=($(compgen -f -- "$word")); fi
}
complete -o filenames -F _voxelwave voxelwave
"""
    )


def _zsh() -> str:
    return (
        "#compdef voxelwave\n"
        + _function(_cases())
        + """_voxelwave() {
  local candidates files
  _voxelwave_words "${(@)words[1,CURRENT-1]}"
  compadd -- ${=candidates}
  if [[ -n "$files" && "$PREFIX" != -* ]]; then _files; fi
}
compdef _voxelwave voxelwave
"""
    )


def _fish() -> str:
    lines = ["complete -c voxelwave -f"]
    lines += [
        f"complete -c voxelwave -n __fish_use_subcommand -a {name} -d {shlex.quote(text)}"
        for name, text in {**dict.fromkeys(COMMANDS, ""), **{n: v.summary for n, v in TOP_LEVEL.items()}}.items()
    ]
    for field, verbs in COMMANDS.items():
        unset = f"__fish_seen_subcommand_from {field}; and not __fish_seen_subcommand_from {' '.join(verbs)}"
        for name, verb in verbs.items():
            lines.append(f"complete -c voxelwave -n '{unset}' -a {name} -d {shlex.quote(verb.summary)}")
    for command, verb in _verbs().items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.split())
        for flag, values in _options(verb).items():
            takes = "" if not values else " -rF" if values == _FILES else f" -rfa '{values}'"
            lines.append(f"complete -c voxelwave -n '{seen}' -l {flag.removeprefix('--')}{takes}")
        lines.append(f"complete -c voxelwave -n '{seen}' -F")
    return "\n".join(lines) + "\n"
