"""The seal of a run: a record of every look at a locked test of its final model, each with a hash of the one before."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import cast

from filelock import FileLock

from ...runs.json_files import json_text, write_json
from ...runs.json_types import read_record
from .evidence_records import Look, Seal

SEAL = "seal.json"


def read_seal(run: Path) -> Seal:
    """The looks so far; none if the run has no seal.

    Raises:
        ValueError: the file was changed: an entry does not follow from the one before it.
    """
    path = run / SEAL
    if not path.is_file():
        return {"looks": []}
    seal = cast(Seal, read_record(path, Seal))
    before = ""
    for number, look in enumerate(seal["looks"], start=1):
        if look["before_sha256"] != before or look["look"] != number:
            raise ValueError(f"{path} was changed: look {number} does not follow from the one before it")
        before = _hash(look)
    return seal


def open_look(
    run: Path, *, model: str, model_sha256: str, study: Path, study_sha256: str, output: Path, subjects: int
) -> Look:
    """Write into the seal that a test begins, before anything is predicted, and return its entry.

    A look that was interrupted before its result is the same look when it is repeated.
    """
    with FileLock(run / f".{SEAL}.lock"):
        seal = read_seal(run)
        for look in seal["looks"]:
            same = (look["model_sha256"], look["study_sha256"]) == (model_sha256, study_sha256)
            if same and look["finished"] is None:
                return look
        fresh: Look = {
            "look": len(seal["looks"]) + 1,
            "opened": _now(),
            "finished": None,
            "model": model,
            "model_sha256": model_sha256,
            "study": str(study.resolve()),
            "study_sha256": study_sha256,
            "output": str(output.resolve()),
            "subjects": subjects,
            "auc": None,
            "before_sha256": _hash(seal["looks"][-1]) if seal["looks"] else "",
        }
        write_json(run / SEAL, {"looks": [*seal["looks"], fresh]})
    return fresh


def close_look(run: Path, look: Look, auc: float) -> Look:
    """Write the result of a look into the seal, and return its entry."""
    with FileLock(run / f".{SEAL}.lock"):
        looks = read_seal(run)["looks"]
        done: Look = {**look, "finished": _now(), "auc": auc}
        write_json(run / SEAL, {"looks": [done if one["look"] == look["look"] else one for one in looks]})
    return done


def _hash(look: Look) -> str:
    """Hash of what is known of a look when it is opened, which its result does not change."""
    opened = {key: value for key, value in look.items() if key not in ("finished", "auc")}
    return hashlib.sha256(json_text(json.loads(json.dumps(opened, sort_keys=True))).encode()).hexdigest()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
