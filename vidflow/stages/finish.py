"""The end of a stage: its tables, and last its manifest, by which it exists."""

from collections.abc import Sequence
from typing import Any

from vidflow.records import Reject, StageSummary
from vidflow.stages.locate import Address
from vidflow.store.features import CLIPS_TABLE, ClipRow
from vidflow.store.layout import STAGE_MANIFEST, FileEntry, publish_json
from vidflow.store.rows import read_rows, write_rows

REJECTS_TABLE = "rejects.parquet"


def finish_stage(
    address: Address,
    *,
    stage: str,
    entries: Sequence[FileEntry],
    clips: Sequence[ClipRow],
    rejects: Sequence[Reject],
    **details: Any,
) -> None:
    """Write the table of clips, the table of rejects and the manifest.

    Args:
        address: Where the stage lies.
        stage: Its name.
        entries: The files it committed, in order.
        clips: Where each clip lies.
        rejects: What it left out.
        details: What else its readers need.
    """
    write_rows(address.directory / CLIPS_TABLE, ClipRow, clips)
    write_rejects(address, rejects)
    files = [{"file": e.file, "num_bytes": e.num_bytes, "sha256": e.sha256, "num_clips": e.num_clips} for e in entries]
    beside = [address.directory / f"{entry.file}.json" for entry in entries]
    manifest = {
        "stage": stage,
        "fingerprint": address.fingerprint,
        "settings": address.settings,
        "edition": address.edition,
        "num_files": len(entries),
        "num_clips": len(clips),
        "num_bytes": sum(entry.num_bytes for entry in entries),
        "seconds": sum(entry.seconds for entry in entries),
        "files": files,
        "entries": [{"file": path.name, "num_bytes": path.stat().st_size} for path in beside],
        "tables": [CLIPS_TABLE, REJECTS_TABLE],
        **details,
    }
    publish_json(address.directory / STAGE_MANIFEST, manifest)


def write_rejects(address: Address, rejects: Sequence[Reject]) -> None:
    """Publish the stage's table of rejects."""
    write_rows(address.directory / REJECTS_TABLE, Reject, rejects)


def read_rejects(address: Address) -> list[Reject]:
    """Return the stage's table of rejects; empty for a stage that has none."""
    path = address.directory / REJECTS_TABLE
    return read_rows(path, Reject) if path.exists() else []


def summarize_stage(address: Address) -> StageSummary | None:
    """Return what a finished stage made, or None while it is not finished."""
    manifest = address.manifest
    if manifest is None:
        return None
    return StageSummary(
        stage=manifest["stage"],
        fingerprint=manifest["fingerprint"],
        directory=address.directory,
        num_files=manifest["num_files"],
        num_clips=manifest["num_clips"],
        num_rejects=len(read_rejects(address)),
        num_bytes=manifest["num_bytes"],
        seconds=manifest["seconds"],
    )
