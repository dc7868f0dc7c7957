"""The frames of clips, read from the shards."""

import functools

import numpy as np
from jaxtyping import UInt8

from vidflow.errors import VidflowError
from vidflow.stages.shard_work import ShardWork
from vidflow.store.digests import check_once
from vidflow.store.features import CLIPS_TABLE, ClipRow
from vidflow.store.layout import FileEntry, committed_entry
from vidflow.store.rows import read_rows
from vidflow.store.shards import read_images
from vidflow.video.encode import decompress


class ClipFrames:
    """The frames of clips by key, from the shards."""

    def __init__(self, work: ShardWork) -> None:
        """Read which shard holds each clip."""
        self._directory = work.address.directory
        self._rows = {row.key: row for row in read_rows(self._directory / CLIPS_TABLE, ClipRow)}
        self._open = functools.cache(self._check)

    def keys(self, split: str) -> list[str]:
        """Return the keys of a split's clips, in the order of the shards."""
        return [key for key, row in self._rows.items() if row.split == split]

    def __call__(self, key: str) -> UInt8[np.ndarray, "T H W 3"]:
        """Return the frames of a clip.

        Raises:
            VidflowError: If the clip's shard, or the list of the shard's members, is gone or damaged.
        """
        entry = self._open(self._rows[key].file)
        images = read_images(self._directory / entry.file, entry.details["members"], key)
        return np.stack([decompress(image) for image in images])

    def _check(self, file: str) -> FileEntry:
        """Return a shard's entry after comparing the shard's bytes with their digest."""
        entry = committed_entry(self._directory, file)
        if entry is None:
            raise VidflowError(
                f"{self._directory / file}: it or its list of members is missing or truncated; `vidflow shard` makes "
                "it again"
            )
        check_once(self._directory / file, entry.sha256)
        return entry
