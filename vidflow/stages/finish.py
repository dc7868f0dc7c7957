"""The end of a stage: write its tables, and last its manifest, which marks the stage as finished."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vidflow.objects import show_urls
from vidflow.records import Reject, StageManifest
from vidflow.stages.address import Address
from vidflow.store.features import CLIPS_TABLE, ClipRow
from vidflow.store.layout import (
    STAGE_MANIFEST,
    FileEntry,
    exists,
    list_sizes,
    publish_json,
    read_sealed,
    read_stage,
    seal_of,
)
from vidflow.store.rows import read_rows, write_rows

REJECTS_TABLE = "rejects.parquet"
_FIELDS = [field.name for field in fields(StageManifest)]


def finish_stage(
    address: Address,
    *,
    stage: str,
    entries: Sequence[FileEntry],
    clips: Iterable[ClipRow],
    rejects: Sequence[Reject],
    wall_seconds: float,
    **details: Any,
) -> None:
    """Write the table of clips, the table of rejects and the manifest.

    Args:
        address: Folder and settings of the stage.
        stage: Its name.
        entries: The files it committed, in order.
        clips: File and row of each clip.
        rejects: What it left out.
        wall_seconds: Wall time of this run.
        details: What else its readers need.
    """
    num_clips = write_rows(address.directory / CLIPS_TABLE, ClipRow, clips)
    write_rejects(address, rejects)
    sizes = list_sizes(address.directory)  # not of local copies, as other nodes have made some of the files
    beside = [f"{entry.file}.json" for entry in entries]
    manifest = StageManifest(
        stage=stage,
        fingerprint=address.fingerprint,
        settings=address.settings,
        edition=address.edition,
        num_files=len(entries),
        num_clips=num_clips,
        num_rejects=len(rejects),
        num_bytes=sum(entry.num_bytes for entry in entries),
        worker_seconds=sum(entry.seconds for entry in entries),
        wall_seconds=wall_seconds,
        files=[
            {"file": e.file, "num_bytes": e.num_bytes, "sha256": e.sha256, "num_clips": e.num_clips} for e in entries
        ],
        entries=[{"file": name, "num_bytes": sizes[name]} for name in beside],
        tables=[CLIPS_TABLE, REJECTS_TABLE],
        details=details,
    )
    publish_manifest(address, manifest)


def publish_manifest(address: Address, manifest: StageManifest) -> None:
    """Publish a stage's manifest; this makes the stage finished."""
    publish_json(address.directory / STAGE_MANIFEST, _as_json(manifest))


def read_manifest(directory: Path) -> StageManifest | None:
    """Return the manifest of a finished stage; None if it is not finished, or one of its files is missing or cut."""
    value = read_stage(directory)
    # Another version of this program wrote other fields. Such a stage counts as not finished; its files are kept.
    return StageManifest(**value) if value is not None and value.keys() == set(_FIELDS) else None


def peek_manifest(directory: Path) -> StageManifest | None:
    """Return a stage's manifest as `read_manifest` does, but change nothing, and do not look for the stage's files."""
    value = read_sealed(directory / STAGE_MANIFEST)
    return StageManifest(**value) if value is not None and value.keys() == set(_FIELDS) else None


def address_of(directory: Path, manifest: StageManifest) -> Address:
    """Return the address at which a stage was made, from what its manifest says."""
    return Address(directory=directory, settings=manifest.settings, edition=manifest.edition)


def manifest_seal(manifest: StageManifest) -> str:
    """Return the digest of a manifest's values."""
    return seal_of(_as_json(manifest))


def write_rejects(address: Address, rejects: Sequence[Reject]) -> None:
    """Publish the stage's table of rejects."""
    # With the addresses of objects, as the paths of their copies mean nothing elsewhere.
    shown = [replace(each, path=show_urls(each.path), message=show_urls(each.message)) for each in rejects]
    write_rows(address.directory / REJECTS_TABLE, Reject, shown)


def read_rejects(address: Address) -> list[Reject]:
    """Return the stage's table of rejects; empty for a stage that has none."""
    path = address.directory / REJECTS_TABLE
    return read_rows(path, Reject) if exists(path) else []


def _as_json(manifest: StageManifest) -> dict[str, Any]:
    # Not `asdict`: it copies 10,000 rows of files one by one.
    return {name: getattr(manifest, name) for name in _FIELDS}
