"""The frames of clips, out of the shards."""

import numpy as np
from jaxtyping import UInt8

from vidflow.errors import VidflowError
from vidflow.stages.locate import ShardWork
from vidflow.store.features import CLIPS_TABLE, ClipRow
from vidflow.store.layout import committed_entry
from vidflow.store.rows import read_rows
from vidflow.store.shards import read_images
from vidflow.video.encode import decompress


class ClipFrames:
    """The frames of clips by key, from the shards."""

    def __init__(self, work: ShardWork) -> None:
        """Read where each clip lies."""
        self._directory = work.address.directory
        self._rows = {row.key: row for row in read_rows(self._directory / CLIPS_TABLE, ClipRow)}

    def keys(self, split: str) -> list[str]:
        """Return the keys of a split's clips, in the order of the shards."""
        return [key for key, row in self._rows.items() if row.split == split]

    def find(self, key: str) -> UInt8[np.ndarray, "T H W 3"] | None:
        """Return the frames of a clip; None if its shard is gone."""
        entry = committed_entry(self._directory, self._rows[key].file)
        if entry is None:
            return None
        images = read_images(self._directory / entry.file, entry.details["members"], key)
        return np.stack([decompress(image) for image in images])

    def __call__(self, key: str) -> UInt8[np.ndarray, "T H W 3"]:
        """Return the frames of a clip.

        Raises:
            VidflowError: If its shard is gone.
        """
        frames = self.find(key)
        if frames is None:
            raise VidflowError(
                f"{self._directory / self._rows[key].file}: gone, and with it the frames of clip {key}; "
                "run `vidflow shard` again"
            )
        return frames
