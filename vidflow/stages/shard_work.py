"""What the shard stage must make, and its edition: clips left out for a transient reason may be added later."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vidflow.config.fingerprints import fingerprint
from vidflow.records import Reject
from vidflow.stages.address import Address
from vidflow.stages.clips import ChosenClips, ShardUnit
from vidflow.stages.transient import TRANSIENT, Limits, is_due
from vidflow.store.layout import committed_entry


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """The shard stage that complete scans give.

    Attributes:
        address: Its folder and settings.
        class_names: Labels of all rows, sorted.
        clips: The clips, sorted by key.
        units: The shards.
        rejects: Rows that give no clip.
        num_rows: Rows of the manifest.
    """

    address: Address
    class_names: list[str]
    clips: ChosenClips
    units: list[ShardUnit]
    rejects: list[Reject]
    num_rows: int

    @property
    def rejects_digest(self) -> str:
        """Hash of the rows left out before shards are made; the table of rejects depends on them, the shards do not."""
        return fingerprint([asdict(reject) for reject in self.rejects])


def edition_of(rejects: Sequence[Reject]) -> str:
    """Return the name of the clips that are left out for transient reasons."""
    keys = sorted(reject.key for reject in rejects if reject.reason in TRANSIENT)
    return fingerprint(keys) if keys else ""


def edition_due(directory: Path, units: Sequence[ShardUnit], rejects: Sequence[Reject], limits: Limits) -> str:
    """Return the edition that the stage will have if every clip that is due succeeds.

    It equals the finished stage's edition if no clip is due.

    Args:
        directory: Folder of the shards.
        units: The shards.
        rejects: What the finished stage left out while it made them.
        limits: Present limits of a clip.
    """
    keys = {reject.key for reject in rejects if reject.reason in TRANSIENT}
    due: set[str] = set()
    for unit in units if keys else ():
        here = keys & {row.key for row in unit.rows}
        entry = committed_entry(directory, unit.file) if here else None
        if entry is None or is_due(entry, limits):
            due |= here
    return edition_of([reject for reject in rejects if reject.key not in due])
