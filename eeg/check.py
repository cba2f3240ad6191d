"""One line of an audit."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Outcome = Literal["ok", "warning", "fail", "not checked"]


@dataclass(frozen=True)
class Check:
    """One line of an audit."""

    check: str
    outcome: Outcome
    detail: str

    def as_dict(self) -> dict[str, str]:
        """The check as plain values, for JSON."""
        return asdict(self)


def failed(checks: Sequence[Check]) -> bool:
    """Whether any check failed."""
    return any(check.outcome == "fail" for check in checks)
