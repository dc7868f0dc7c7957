"""A finished feature set on disk, for tests that need a small real one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidflow.files import file_sha256
from vidflow.records import ClipTokens
from vidflow.stages.address import Address
from vidflow.stages.finish import finish_stage
from vidflow.store.features import ClipRow, FeatureReader, write_features
from vidflow.store.layout import FileEntry, publish_entry


def finish_features(
    directory: Path, files: Mapping[str, Sequence[ClipTokens]], metadata: dict[str, Any]
) -> FeatureReader:
    """Write and commit files of clips, as extraction does, and return a reader of them."""
    entries, rows = [], []
    for name, clips in files.items():
        path = directory / name
        write_features(path, clips, metadata)
        entry = FileEntry(
            file=name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_clips=len(clips),
            seconds=0.0,
            rejects=[],
            details={},
        )
        publish_entry(directory, entry)
        entries.append(entry)
        rows += [
            ClipRow(key=clip.key, label=clip.label, split=clip.split, file=name, row=row, video=clip.key)
            for row, clip in enumerate(clips)
        ]
    address = Address(directory=directory, settings={})
    finish_stage(address, stage="extract", entries=entries, clips=rows, rejects=[], wall_seconds=0.0, metadata=metadata)
    return FeatureReader(directory)
