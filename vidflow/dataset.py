"""Cached features as a dataset of torch, for training loops of your own.

Axes: B clips, T frames, K tapped depths, N tokens, P prefix tokens, D embedding width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vidflow.errors import VidflowError
from vidflow.records import ClipTokens
from vidflow.stages.sources import find_features
from vidflow.store.features import FeatureReader, clip_order
from vidflow.training.batches import PADDED, core_tokens, read_annotations

Sample = dict[str, Any]


class FeatureDataset(Dataset[Sample]):
    """The clips of one feature set.

    A clip is a dictionary: `key`; `label`, -1 if there is none; `index`, its position in the feature set;
    `pts_seconds (T,)`; `tokens (T, K, N, D)` and `prefix (T, P, D)` in fp16; `counts (T, K)`, how many of the N tokens
    are not padding; and the arrays that were asked for. All are copies.

    It may be pickled, so it works with any start method of `DataLoader` workers: each maps the same files.

    Attributes:
        folder: Folder of the feature set.
        positions: Positions of its clips in the feature set.
    """

    def __init__(
        self,
        source: str | Path,
        split: str | None = None,
        *,
        features: str | None = None,
        num_depths: int | None = None,
        arrays: Sequence[str] = (),
        unmerged: bool = True,
    ) -> None:
        """Open a feature set.

        Args:
            source: Folder of the feature set, or the config that it was made with.
            split: Clips to take; None is all.
            features: Name of the feature set, if the config has several.
            num_depths: Number of tapped depths to return, counted from the last; None is all.
            arrays: Annotations to return, such as `boxes`.
            unmerged: Whether reduced tokens are returned on the full grid of patches. Else they are returned as they
                are stored, padded with zeros to the largest number of tokens.

        Raises:
            VidflowError: If the feature set is not finished or damaged, or it has no such split.
        """
        self.folder = find_features(source, name=features)
        self._num_depths, self._arrays, self._unmerged = num_depths, tuple(arrays), unmerged
        self._reader: FeatureReader | None = None
        splits = np.asarray(self.reader.splits)
        self.positions = np.flatnonzero(splits == split) if split is not None else np.arange(len(splits))
        if not len(self.positions):
            found = ", ".join(sorted(set(self.reader.splits))) or "none"
            raise VidflowError(f"{self.folder}: no clip of split {split!r}; splits found: {found}")

    @property
    def reader(self) -> FeatureReader:
        """The feature set, opened at its first use in a process."""
        if self._reader is None:
            self._reader = FeatureReader(self.folder)
        return self._reader

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that labels stand for."""
        return list(self.reader.metadata["class_names"])

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        """Return a clip."""
        position = int(self.positions[index])
        clip = self.reader[position]
        tokens = self._tokens(clip)
        counts = np.full(tokens.shape[:2], tokens.shape[2]) if self._unmerged else clip.counts[:, -tokens.shape[1] :]
        arrays = {
            "pts_seconds": clip.pts_seconds,
            "tokens": tokens,
            "prefix": clip.prefix,
            "counts": counts,
            **read_annotations(clip, self._arrays),
        }
        copies = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        return {"key": clip.key, "label": clip.label, "index": position, **copies}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _tokens(self, clip: ClipTokens) -> Float16[np.ndarray, "T K N D"]:
        if self._unmerged:
            return core_tokens(clip, self._num_depths, unmerged=True)
        is_token = np.arange(clip.counts.max()) < clip.counts[..., None]
        padded = np.zeros((*is_token.shape, clip.tokens.shape[1]), clip.tokens.dtype)
        padded[is_token] = clip.tokens
        return padded[:, -(self._num_depths or 0) :]


class EpochSampler(Sampler[int]):
    """The order of clips in an epoch of training: the same seed and epoch give the order that a trial sees.

    Call `set_epoch` before each epoch, as with torch's `DistributedSampler`.
    """

    def __init__(self, dataset: FeatureDataset, *, seed: int = 0, epoch: int = 1) -> None:
        """Start at an epoch; a trial counts them from 1."""
        self._num_clips, self._seed, self._epoch = len(dataset), seed, epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of clips."""
        return self._num_clips

    def __iter__(self) -> Iterator[int]:
        """Yield positions in the dataset."""
        yield from clip_order(self._num_clips, seed=self._seed, epoch=self._epoch).tolist()


def collate_clips(clips: Sequence[Sample]) -> Sample:
    """Return a batch of clips: arrays stacked, keys as a list.

    Clips with fewer tokens, boxes or points than others are padded with zeros; `counts` says how many tokens are real,
    `boxes_visible` and `points_visible` are false for padding.
    """
    batch: Sample = {"key": [clip["key"] for clip in clips]}
    for name in ("label", "index"):
        batch[name] = torch.tensor([clip[name] for clip in clips])
    for name in clips[0].keys() - batch.keys():
        axis = 2 if name == "tokens" else 0 if name in PADDED else None
        batch[name] = torch.stack(_pad([clip[name] for clip in clips], axis))
    return batch


def _pad(arrays: Sequence[Tensor], axis: int | None) -> list[Tensor]:
    """Return arrays that have the same length along an axis."""
    if axis is None or len({array.shape[axis] for array in arrays}) == 1:
        return list(arrays)
    longest = max(array.shape[axis] for array in arrays)
    padded = []
    for array in arrays:
        missing = list(array.shape)
        missing[axis] = longest - array.shape[axis]
        padded.append(torch.cat([array, array.new_zeros(missing)], axis))
    return padded


__all__ = ["EpochSampler", "FeatureDataset", "collate_clips"]
