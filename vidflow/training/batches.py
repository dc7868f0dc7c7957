"""Batches of cached features: read, by a thread that works ahead if that is faster, and moved to the device.

Axes: B clips, T frames, K tapped depths, N patch tokens, P prefix tokens, D embedding width, O boxes, Q points,
H and W pixels.
"""

import functools
import io
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from numpy.typing import DTypeLike
from torch import Tensor

from vidflow.ahead import make_ahead
from vidflow.allocator import ArrayPool
from vidflow.errors import VidflowError
from vidflow.records import ClipTokens
from vidflow.store.features import FeatureReader, stored_tokens, unmerge
from vidflow.store.shard_clips import StoredClip

_TARGET_TYPES: dict[str, Any] = {
    "boxes": np.float32,
    "boxes_visible": np.bool_,
    "points": np.float32,
    "points_visible": np.bool_,
    "query_frames": np.int64,
    "depth": np.float32,
    "camera_motion": np.float32,
}
PADDED = {"boxes", "boxes_visible", "points", "points_visible", "query_frames"}
_NUM_AHEAD = 2
# Size of a batch, in bytes, whose copy takes as long as two threads lose by sharing the interpreter.
_WORTH_A_THREAD = 1 << 24
# Memory of the batches that stay on the host; kept as long as their reader lives.
_POOLS: weakref.WeakKeyDictionary[FeatureReader, ArrayPool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some clips on the device.

    Attributes:
        indices: Position of each clip in its reader; stays on the host.
        tokens: Patch tokens as they are stored, in fp16; a task converts them to its own precision.
        prefix: Class token and registers of the last tapped depth, or None if the encoder has none.
        targets: `label (B,)`, -1 if there is none, and the arrays that were requested: `boxes (B, O, T, 4)`,
            `boxes_visible (B, O, T)`, `points (B, Q, T, 2)`, `points_visible (B, Q, T)`, `query_frames (B, Q)`,
            `depth (B, T, H, W)`, `camera_motion (B, T, 9)`. Clips with fewer objects or points than others are padded
            with zeros, which are not visible.
    """

    indices: Int64[np.ndarray, " B"]
    tokens: Float[Tensor, "B T K N D"]
    prefix: Float[Tensor, "B T P D"] | None
    targets: dict[str, Tensor]

    def part(self, start: int, stop: int) -> "Batch":
        """Return some clips of the batch."""
        rows = slice(start, stop)
        return Batch(
            indices=self.indices[rows],
            tokens=self.tokens[rows],
            prefix=None if self.prefix is None else self.prefix[rows],
            targets={name: target[rows] for name, target in self.targets.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The clips of a trial, as positions in what they are read from.

    Attributes:
        train: Clips to train on.
        val: Clips to validate on.
        test: Clips on which the best epoch is measured at the end; None: there are none.
    """

    train: Int64[np.ndarray, " train"]
    val: Int64[np.ndarray, " val"]
    test: Int64[np.ndarray, " test"] | None = None

    @property
    def measured(self) -> Int64[np.ndarray, " measured"]:
        """The clips to validate and to test on."""
        return self.val if self.test is None else np.concatenate([self.val, self.test])


def iterate_batches(
    reader: FeatureReader,
    indices: Int64[np.ndarray, " clips"],
    *,
    batch_size: int,
    device: torch.device,
    num_depths: int | None = None,
    arrays: Sequence[str] = (),
    unmerged: bool = True,
    view_of: Callable[[int], int] | None = None,
) -> Iterator[Batch]:
    """Yield the clips at `indices` in batches, in that order; the last batch may be smaller.

    The order depends on `indices` alone. Every batch is a copy of its clips. It does not change while anything refers
    to it; after that, a later batch uses its memory. If it is faster, a thread reads the next batches ahead; it ends
    with the iterator.

    Args:
        reader: Cached features.
        indices: Positions of clips in the reader.
        batch_size: Clips per batch, at least 1.
        device: Where batches go; on CUDA through pinned memory, without waiting for the copy.
        num_depths: Number of tapped depths to return, counted from the last; None is all.
        arrays: Names of the annotations to return, such as `boxes`.
        unmerged: Whether reduced tokens are returned on the full grid of patches, or as they are stored.
        view_of: Which of its stored views stands for the clip at a position; None is the plain one for all.

    Raises:
        VidflowError: If clips of a batch differ in shape, or a clip has ragged token counts or lacks annotations.
    """
    chunks = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    pool = None if device.type == "cuda" else _POOLS.setdefault(reader, ArrayPool())
    batches: Iterator[Batch] = (
        _read_batch(reader, chunk, num_depths, arrays, unmerged, view_of, pool) for chunk in chunks
    )
    num_bytes = batch_size * reader[int(indices[0])].tokens.nbytes if len(indices) else 0
    if needs_thread(device, num_bytes, arrays):
        batches = make_ahead(batches, num_ahead=_NUM_AHEAD)
    # `map`, because a loop here would hold a reference to a batch that the caller has dropped.
    yield from map(functools.partial(_move, device=device), batches)


def needs_thread(device: torch.device, num_bytes: int, arrays: Sequence[str]) -> bool:
    """Whether a thread that reads ahead saves more time than it costs.

    It always does for annotations, which it unpacks during the steps. During a step on a GPU the host is free to copy
    large batches. During a step on the host, copies only compete with the step.

    Args:
        device: Where batches go.
        num_bytes: Bytes of a batch's tokens.
        arrays: Names of the annotations to return.
    """
    return bool(arrays) or (device.type == "cuda" and num_bytes >= _WORTH_A_THREAD)


def _read_batch(
    reader: FeatureReader,
    indices: Int64[np.ndarray, " B"],
    num_depths: int | None,
    arrays: Sequence[str],
    unmerged: bool,
    view_of: Callable[[int], int] | None,
    pool: ArrayPool | None,
) -> Batch:
    clips = [reader[i] if view_of is None else reader.view(i, view_of(i)) for i in map(int, indices)]
    keys = [clip.key for clip in clips]
    annotations = [read_annotations(clip, arrays) for clip in clips]
    targets = stack_targets(annotations, keys, arrays, pool)
    targets["label"] = torch.tensor([clip.label for clip in clips])
    prefix = _stack([clip.prefix for clip in clips], keys, "prefix", pool)
    return Batch(
        indices=indices,
        tokens=_stack([core_tokens(clip, num_depths, unmerged=unmerged) for clip in clips], keys, "tokens", pool),
        prefix=prefix if prefix.shape[2] else None,
        targets=targets,
    )


def stack_targets(
    annotations: Sequence[Mapping[str, np.ndarray]], keys: Sequence[str], names: Sequence[str], pool: ArrayPool | None
) -> dict[str, Tensor]:
    """Return the named arrays of some clips, each as one tensor; see `Batch`."""
    return {name: _stack([clip[name] for clip in annotations], keys, name, pool, pad=name in PADDED) for name in names}


def core_tokens(clip: ClipTokens, num_depths: int | None, *, unmerged: bool) -> Float16[np.ndarray, "T K N D"]:
    """Return the tokens of the last depths on the full grid of patches, or as they are stored.

    Raises:
        VidflowError: If the clip has ragged token counts and no assignment of its patches to tokens.
    """
    return (unmerge if unmerged else stored_tokens)(clip)[:, -(num_depths or 0) :]


def read_annotations(clip: ClipTokens | StoredClip, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the named arrays of a clip's `.npz`.

    Raises:
        VidflowError: If the clip lacks one of them.
    """
    if not names:
        return {}
    if not clip.annotations:
        raise VidflowError(f"clip {clip.key}: no annotations, wanted {', '.join(names)}; name them in the manifest")
    with np.load(io.BytesIO(clip.annotations), allow_pickle=False) as stored:
        if missing := [name for name in names if name not in stored.files]:
            raise VidflowError(
                f"clip {clip.key}: its annotations hold {', '.join(stored.files)}; missing: {', '.join(missing)}"
            )
        return {name: stored[name].astype(_TARGET_TYPES[name], copy=False) for name in names}


def _stack(
    arrays: Sequence[np.ndarray], keys: Sequence[str], name: str, pool: ArrayPool | None, *, pad: bool = False
) -> Tensor:
    """Copy the arrays of a batch into one tensor; with `pad`, their first axes may differ."""
    inner = arrays[0].shape[1:] if pad else arrays[0].shape
    shape = (max(1, *(len(array) for array in arrays)), *inner) if pad else inner
    stacked = empty_batch((len(arrays), *shape), arrays[0].dtype, pool)
    if pad:
        stacked.zero_()
    for row, array, key in zip(stacked.numpy(), arrays, keys, strict=True):
        if array.shape[array.ndim - len(inner) :] != inner:
            raise VidflowError(
                f"clip {key}: {name} of shape {array.shape}, but {arrays[0].shape} in clip {keys[0]}; "
                "clips of one feature set must have the same shape; make the features again"
            )
        row[: len(array)] = array
    return stacked


def empty_batch(shape: tuple[int, ...], dtype: DTypeLike, pool: ArrayPool | None) -> Tensor:
    """Return memory for a batch: from the pool or, without a pool, pinned memory, which torch itself reuses."""
    if pool is not None:
        return torch.from_numpy(pool.empty(shape, dtype))
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)


def _move(batch: Batch, device: torch.device) -> Batch:
    """Send a batch to the device."""
    prefix = batch.prefix
    return Batch(
        indices=batch.indices,
        tokens=batch.tokens.to(device, non_blocking=True),
        prefix=None if prefix is None else prefix.to(device, non_blocking=True),
        targets={name: target.to(device, non_blocking=True) for name, target in batch.targets.items()},
    )
