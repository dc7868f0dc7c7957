"""Clips of the shards by position: labels and splits at once, frames and annotations by their bytes when asked for.

Axes: T frames.
"""

import functools
import json
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from vidflow.errors import VidflowError
from vidflow.objects import is_mirror
from vidflow.store.digests import check_once
from vidflow.store.features import CLIPS_TABLE, ClipRow
from vidflow.store.layout import committed_entry, read_stage
from vidflow.store.rows import read_columns
from vidflow.store.shards import read_members

# Open shards kept; the list of members of one with 64 clips of 16 frames takes 0.2 MB.
_NUM_SHARDS_KEPT = 256

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClip:
    """What a shard holds of a clip besides its frames.

    Attributes:
        key: The clip's content key.
        label: Class index, or -1.
        pts_seconds: Presentation time of each frame.
        annotations: Serialized `.npz` with the dense ground truth of the clip, or empty.
    """

    key: str
    label: int
    pts_seconds: Float64[np.ndarray, " T"]
    annotations: bytes


class ShardClips:
    """All clips of a finished shard stage, in a fixed order; any thread may read them.

    Attributes:
        directory: Folder of the shards.
        metadata: `class_names`.
        keys: Content key of each clip.
        labels: Class index of each clip.
        splits: Split of each clip.
        videos: Row of the manifest that each clip was cut from; None in shards of older versions.
    """

    def __init__(self, directory: Path) -> None:
        """Read the stage's manifest and its table of clips.

        Raises:
            VidflowError: If the stage is not finished, or one of its files is missing or damaged.
        """
        manifest = read_stage(directory)
        if manifest is None:
            raise VidflowError(f"{directory}: no finished shards here; run `vidflow shard` with this configuration")
        self.directory = directory
        self.metadata: dict[str, Any] = {"class_names": manifest["details"]["class_names"]}
        rows = read_columns(directory / CLIPS_TABLE, ClipRow)
        self.keys: list[str] = rows["key"]
        self.labels: list[int] = rows["label"]
        self.splits: list[str] = rows["split"]
        self.videos: list[str | None] = rows["video"]
        self._files: list[str] = rows["file"]
        # The function does not use `self`: an object that refers to itself is freed only by the garbage collector.
        self._opened = functools.lru_cache(_NUM_SHARDS_KEPT)(functools.partial(_OpenShard, directory))

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.keys)

    def __getitem__(self, index: int) -> StoredClip:
        """Return what is stored of a clip besides its frames."""
        described: dict[str, Any] = json.loads(self._read(index, [self._members_of(index)["json"]])[0])
        return StoredClip(
            key=self.keys[index],
            label=self.labels[index],
            pts_seconds=np.asarray(described["pts_seconds"], np.float64),
            annotations=self.annotations(index),
        )

    def images(self, index: int) -> list[bytes]:
        """Return the compressed frames of a clip; only their bytes are read."""
        members = self._members_of(index)
        return self._read(index, [members[name] for name in sorted(members) if name[0].isdigit()])

    def annotations(self, index: int) -> bytes:
        """Return the dense ground truth of a clip, or empty."""
        truth = self._members_of(index).get("annotations.npz")
        return self._read(index, [truth])[0] if truth is not None else b""

    def check_files(self) -> None:
        """Compare every shard with its digest now, instead of when it is first opened.

        Objects are compared when a node copies them: to copy all now would only fill this node's cache.

        Raises:
            VidflowError: If a file is missing or damaged.
        """
        if is_mirror(self.directory):
            return
        for file in dict.fromkeys(self._files):
            self._opened(file)

    def _members_of(self, index: int) -> dict[str, Span]:
        return self._opened(self._files[index]).members[self.keys[index]]

    def _read(self, index: int, spans: Sequence[Span]) -> list[bytes]:
        shard = self._opened(self._files[index])
        return [os.pread(shard.descriptor, size, offset) for offset, size in spans]


class _OpenShard:
    """A shard whose digest was compared. It stays open, as a store would be asked again whenever it is opened.

    Attributes:
        members: Key -> name of a member -> offset and size of its bytes.
        descriptor: The open file; closed when nobody reads it any more.
    """

    def __init__(self, directory: Path, file: str) -> None:
        entry = committed_entry(directory, file)
        if entry is None:
            raise VidflowError(
                f"{directory / file}: it or its list of members is missing or truncated; `vidflow shard` makes it again"
            )
        check_once(directory / file, entry.sha256)
        self.members: dict[str, dict[str, Span]] = read_members(entry.details["members"])
        self.descriptor = os.open(directory / file, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


__all__ = ["ShardClips", "StoredClip"]
