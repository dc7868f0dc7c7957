"""What the shard stage is to make, and which edition of it: clips left out for a transient reason may come back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vidflow.config.fingerprints import fingerprint
from vidflow.records import Reject
from vidflow.stages.address import Address
from vidflow.stages.clips import ShardUnit
from vidflow.stages.transient import TRANSIENT, Limits, is_due
from vidflow.store.layout import committed_entry


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """The shard stage as complete scans make it.

    Attributes:
        address: Where it lies.
        class_names: Labels of all rows, sorted.
        units: The shards.
        rejects: Rows that no clip is made of.
        num_rows: Rows of the manifest.
    """

    address: Address
    class_names: list[str]
    units: list[ShardUnit]
    rejects: list[Reject]
    num_rows: int

    @property
    def rejects_digest(self) -> str:
        """Name of what is left out before shards are made: the shards do not depend on it, their rejects do."""
        return fingerprint([asdict(reject) for reject in self.rejects])


def edition_of(rejects: Sequence[Reject]) -> str:
    """Return the name of the clips that are left out for transient reasons."""
    keys = sorted(reject.key for reject in rejects if reject.reason in TRANSIENT)
    return fingerprint(keys) if keys else ""


def edition_due(directory: Path, units: Sequence[ShardUnit], rejects: Sequence[Reject], limits: Limits) -> str:
    """Return the edition as it will be if every clip that is due succeeds.

    Equal to the finished stage's edition when nothing is due.

    Args:
        directory: Where the shards lie.
        units: The shards.
        rejects: What the finished stage left out while it made them.
        limits: What a clip is allowed now.
    """
    keys = {reject.key for reject in rejects if reject.reason in TRANSIENT}
    due: set[str] = set()
    for unit in units if keys else ():
        here = keys & {clip.key for clip in unit.clips}
        entry = committed_entry(directory, unit.file) if here else None
        if entry is None or is_due(entry, limits):
            due |= here
    return edition_of([reject for reject in rejects if reject.key not in due])
