"""What is not as it should be below a root."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["broken", "unfinished", "leftover", "unknown"]
"""How bad a finding is; only `broken` makes a root unsound.

- `broken`: bytes are not those that were written, or a piece is gone.
- `unfinished`: a stage or trial that was interrupted, or half deleted; no reader trusts it.
- `leftover`: what no manifest lists and nobody reads.
- `unknown`: vidflow makes no such file; it is left alone.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        level: How bad it is.
        path: The file or folder.
        problem: What is wrong.
        removes: What `repair` deletes because of it, in this order: a file before the manifest that lists it. A
            manifest whose file is gone counts as missing, so a kill in between leaves nothing that is trusted wrongly.
    """

    level: Level
    path: Path
    problem: str
    removes: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a look at a root has found.

    Attributes:
        root: The root.
        num_files: Files compared with a digest, seals of JSON files among them.
        num_bytes: Bytes of the files that were read for that.
        num_sized: Files of which only the size is recorded.
        findings: What is not as it should be.
        unchecked: Reason -> number of files that nothing can be compared with.
    """

    root: Path
    num_files: int
    num_bytes: int
    num_sized: int
    findings: Sequence[Finding]
    unchecked: dict[str, int]

    @property
    def broken(self) -> list[Finding]:
        """The findings because of which the root is not sound."""
        return [finding for finding in self.findings if finding.level == "broken"]


__all__ = ["Finding", "Level", "Verified"]
