"""Measure each stage against a bare loop over the same work: `vidflow bench CONFIG.yaml`.

Loop and stage take turns in the same workers, so a slow or busy machine slows both; the ratio is what counts.
Everything is made under a temporary folder beside `root` and removed at the end.
"""

import dataclasses

ROUNDS = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a stage's speed, the bare loop's, and what the loop is."""

    stage: str
    unit: str
    speed: float
    bare: float
    loop: str

    def __str__(self) -> str:
        """Return the line."""
        ratio = self.speed / self.bare
        return f"{self.stage:<10} {self.speed:>10.2f} {self.bare:>10.2f} {self.unit:<10} {ratio:>6.2f}  {self.loop}"
