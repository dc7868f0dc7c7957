"""Reduction of cached tokens: make a feature file from a dense one, without an encoder.

Axes: T frames, K tapped depths, H and W the grid, N patches of a frame, R rows kept of a clip, D embedding width.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidflow.counts import Count, uncounted
from vidflow.files import file_sha256
from vidflow.models.reduction.assignment import frame_counts
from vidflow.models.reduction.build import PostReducer
from vidflow.models.reduction.seeds import seed_of_key
from vidflow.records import ClipTokens
from vidflow.store.features import FeatureFile, unmerge, write_features
from vidflow.store.layout import FileEntry, publish_entry


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceUnit:
    """One feature file to make, and the dense file it is made from.

    Attributes:
        file: Name of the feature file.
        dense: Name of the dense file.
        source_sha256: Digest of the dense file.
        num_clips: Clips in it, for the progress.
    """

    file: str
    dense: str
    source_sha256: str
    num_clips: int = 1


class TokenReducer:
    """Makes reduced feature files; the last depth decides which tokens are merged, and all depths use that decision."""

    def __init__(self, reducer: PostReducer, *, dense: Path, directory: Path, metadata: dict[str, Any]) -> None:
        """Keep the reducer, the folders and the metadata.

        Args:
            reducer: One that acts on cached tokens.
            dense: Folder of the dense feature files.
            directory: Folder of the reduced feature files.
            metadata: Replaces entries of the same names in the dense files' metadata.
        """
        self._reducer, self._dense, self._directory, self._metadata = reducer, dense, directory, metadata

    def __call__(self, unit: ReduceUnit, count: Count = uncounted) -> FileEntry:
        """Reduce one file and commit the result.

        Raises:
            DamagedError: If the dense file's bytes do not have the committed digest.
        """
        started = time.perf_counter()
        source = FeatureFile(self._dense / unit.dense, unit.source_sha256)
        path = self._directory / unit.file
        write_features(path, self._reduce(source, count), {**source.metadata, **self._metadata})
        entry = FileEntry(
            file=path.name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_clips=unit.num_clips,
            seconds=time.perf_counter() - started,
            rejects=[],
            details={"source": unit.source_sha256},
        )
        publish_entry(self._directory, entry)
        return entry

    def _reduce(self, source: FeatureFile, count: Count) -> Iterator[ClipTokens]:
        height, width = source.metadata["grid"]
        previous = ""
        for row in range(len(source)):
            clip = source[row]
            yield reduce_clip(self._reducer, clip, height=height, width=width)
            count(clip.key != previous)  # views of a clip follow one another
            previous = clip.key


@torch.inference_mode()
def reduce_clip(reducer: PostReducer, clip: ClipTokens, *, height: int, width: int) -> ClipTokens:
    """Return a dense clip with fewer tokens."""
    dense = torch.from_numpy(unmerge(clip).astype(np.float32))
    num_frames, num_depths = dense.shape[:2]
    seeds = torch.tensor([seed_of_key(clip.key)]) if reducer.is_random else None
    grid = dense[:, -1].unflatten(1, (height, width))
    step = reducer.assign(grid.unsqueeze(0), seeds=seeds)
    by_depth = dense.transpose(0, 1).flatten(1, 2)
    ones = torch.ones(1, by_depth.shape[1])
    merged = [step.merge(tokens.unsqueeze(0), ones) for tokens in by_depth]
    counts = frame_counts(step, num_frames)[0].numpy()
    num_rows = int(counts.sum())
    # Rows of all depths, frame by frame: the order in which a clip's tokens are stored.
    frame_of_row = np.repeat(np.arange(num_frames), counts)
    order = np.lexsort((np.tile(np.arange(num_depths), (num_rows, 1)).T.ravel(), np.tile(frame_of_row, num_depths)))
    rows = torch.cat([tokens[0, :num_rows] for tokens, _ in merged]).numpy()
    sizes = torch.cat([size[0, :num_rows] for _, size in merged]).numpy()
    assignment = step.row_of[0].numpy().reshape(num_frames, 1, -1)
    return replace(
        clip,
        tokens=rows[order].astype(np.float16),
        counts=np.repeat(counts[:, None], num_depths, axis=1).astype(np.int32),
        sizes=sizes[order],
        assignment=np.repeat(assignment, num_depths, axis=1),
    )
