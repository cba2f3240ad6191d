"""Checks before a training is resumed."""

import json
from collections.abc import Mapping, Set
from pathlib import Path

from .exit import UsageError
from .json_files import json_text


def check_resume(checkpoint: Path, resume: bool) -> None:
    """Refuse to resume from a missing checkpoint, or to overwrite an existing one.

    Raises:
        FileNotFoundError: `resume` is set, but there is no checkpoint.
        UsageError: there is a checkpoint, but `resume` is not set.
    """
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"--resume needs {checkpoint}, which does not exist")
    if not resume and checkpoint.exists():
        raise UsageError(
            f"{checkpoint} exists already: continue with --resume, begin anew with --overwrite, or choose another"
            " --output"
        )


def check_same_options(before: Mapping[str, object], now: Mapping[str, object], *, may_change: Set[str]) -> None:
    """Refuse to resume a training with other options than those in its checkpoint.

    Args:
        before: the options in the checkpoint.
        now: the current options.
        may_change: names of options that may differ.

    Raises:
        ValueError: an option differs; the message lists the differences.
    """
    changed = [name for name in now if name not in may_change and before.get(name) != now[name]]
    if changed:
        words = ", ".join(f"{name} ({before.get(name)} before, {now[name]} now)" for name in changed)
        raise ValueError(f"a resumed training must keep its options, got different ones: {words}")


def check_same_training(record: Path, now: Mapping[str, object]) -> None:
    """Refuse to resume a training with other data or options than at its start.

    Args:
        record: the JSON file that was written when the training began; runs of 0.1.0 have none.
        now: the current values of the same facts, as values that JSON can hold.

    Raises:
        ValueError: a fact differs; the message lists the differences.
    """
    if not record.is_file():
        return
    before, present = json.loads(record.read_text()), json.loads(json_text(dict(now)))
    differ = [name for name in present if before.get(name) != present[name]]
    if differ:
        shown = [
            f"{name} was {before.get(name)}, now {present[name]}"
            if len(str(present[name])) < 30 and len(str(before.get(name))) < 30
            else f"other {name}"
            for name in differ
        ]
        raise ValueError(
            f"{record.parent} holds a training with other data or options ({'; '.join(shown[:4])}): resume with the "
            "same data and options, or choose another --output"
        )
