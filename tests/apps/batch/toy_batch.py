"""Work for batches that takes almost no time; workers import it by name."""

import errno
import hashlib
import os
import time
from pathlib import Path


class Digests:
    """Write three files about each input; the text of an input names the failure to cause."""

    def __init__(self, seconds: float = 0.0, log: str | None = None, size: int = 8):
        self.seconds, self.log, self.size = seconds, log, size

    def __call__(self, case, folder: Path) -> dict:
        content = b"".join(path.read_bytes() for path in _files(case.inputs))
        words = content.decode("latin-1")
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(f"{case.identifier} size {self.size}\n")
        for number in range(3):
            digest = hashlib.sha256(content + bytes([number])).hexdigest()
            (folder / f"{number}.txt").write_text(digest * 100)
            time.sleep(self.seconds)
        if "broken" in words:
            raise ValueError(f"{case.inputs[0]} is broken")
        if "odd" in words:
            raise KeyError("no such thing")
        if "die" in words:
            os._exit(9)
        if "full" in words:
            raise ValueError("cannot write") from OSError(errno.ENOSPC, "No space left on device")
        if "large" in words and self.size > 2:
            raise MemoryError
        return {"metrics": {"bytes": len(content)}, "warnings": ["warned"] if "warn" in words else []}

    def smaller(self):
        """The same work with half the size, at least 2."""
        return Digests(self.seconds, self.log, self.size // 2) if self.size > 2 else None

    @property
    def size_in_words(self) -> str:
        return f"size {self.size}"


def make(**arguments) -> Digests:
    return Digests(**arguments)


def cannot_be_made(**arguments):
    raise ValueError("the weights are damaged")


def _files(inputs):
    return [file for path in inputs for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
