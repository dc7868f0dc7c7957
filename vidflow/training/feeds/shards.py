"""The feed `shards`: frames read by their bytes in any order, decompressed and augmented ahead of the training step.

Axes: B clips, T frames, H and W pixels, s side of the encoder's input.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vidflow.allocator import ArrayPool
from vidflow.config.schema import Augmentation
from vidflow.errors import VidflowError
from vidflow.store.shard_clips import ShardClips
from vidflow.training.batches import empty_batch, read_annotations, stack_targets
from vidflow.training.feeds.feed import FrameBatch
from vidflow.video.augmentation import augment_frames
from vidflow.video.augmented_targets import augment_targets, exchanged_label
from vidflow.video.encode import decompress
from vidflow.video.view_draws import clip_generator, draw_view

# Batches that are being made while one is used.
_NUM_AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFeed:
    """Batches of frames.

    The same clips in the same order give the same batches, whatever the number of threads.

    Attributes:
        clips: The shards.
        device: Where batches go; on CUDA through pinned memory, without waiting for the copy.
        arrays: Names of the annotations that the task needs.
        img_size: Side of the encoder's input. Augmented clips have it; plain ones keep the size that they are stored
            with, as the encoder fits them like extraction does.
        augmentation: How training clips change; None: not at all.
        label_pairs: Class -> class of the mirrored clip.
        seed: Seed of the augmentation.
        num_threads: Threads that read, decompress and augment.
    """

    clips: ShardClips
    device: torch.device
    arrays: Sequence[str]
    img_size: int
    augmentation: Augmentation | None
    label_pairs: Mapping[int, int] = field(default_factory=dict)
    seed: int
    num_threads: int
    _pool: ArrayPool = field(default_factory=ArrayPool)

    def batches(
        self, indices: Int64[np.ndarray, " clips"], *, batch_size: int, epoch: int | None
    ) -> Iterator[FrameBatch]:
        """Yield batches; see `Feed`."""
        if not len(indices):
            return
        chunks = iter([indices[start : start + batch_size] for start in range(0, len(indices), batch_size)])
        shape = self._shape_of(int(indices[0]), epoch)
        coming: deque[_Coming] = deque()
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="frames") as threads:
            try:
                while True:
                    while len(coming) <= _NUM_AHEAD and (chunk := next(chunks, None)) is not None:
                        coming.append(self._start(threads, chunk, shape, epoch))
                    if not coming:
                        return
                    yield self._finish(coming.popleft())
            finally:
                for batch in coming:
                    for future in batch.rows:
                        future.cancel()

    def read_clip(self, index: int, epoch: int | None) -> tuple[UInt8[Tensor, "T H W 3"], dict[str, np.ndarray], int]:
        """Return the frames, the ground truth and the class of a clip as an epoch shows it; None is the plain view."""
        frames = np.stack([decompress(image) for image in self.clips.images(index)])
        stored = self.clips[index] if self.arrays else None
        targets = read_annotations(stored, self.arrays) if stored is not None else {}
        label = self.clips.labels[index]
        if epoch is None or self.augmentation is None:
            return torch.from_numpy(frames), targets, label
        size = frames.shape[1]
        view = draw_view(self.augmentation, clip_generator(self.seed, epoch, self.clips.keys[index]), size=size)
        shown = augment_frames(frames, view, size=self.img_size)
        return shown, augment_targets(targets, view, size=size), exchanged_label(label, view, self.label_pairs)

    def _shape_of(self, index: int, epoch: int | None) -> tuple[int, ...]:
        return tuple(self.read_clip(index, epoch)[0].shape)

    def _start(
        self, threads: ThreadPoolExecutor, chunk: Int64[np.ndarray, " B"], shape: tuple[int, ...], epoch: int | None
    ) -> "_Coming":
        pool = None if self.device.type == "cuda" else self._pool
        frames = empty_batch((len(chunk), *shape), np.uint8, pool)
        # As NumPy's, because a thread may not write tensors that another one made in inference mode.
        memory = frames.numpy()
        rows = [threads.submit(self._fill, memory[row], int(index), epoch) for row, index in enumerate(chunk)]
        return _Coming(chunk, frames, rows)

    def _fill(
        self, row: UInt8[np.ndarray, "T H W 3"], index: int, epoch: int | None
    ) -> tuple[dict[str, np.ndarray], int]:
        """Write the frames of a clip into its row of the batch, and return its ground truth and class."""
        frames, targets, label = self.read_clip(index, epoch)
        if tuple(frames.shape) != row.shape:
            raise VidflowError(
                f"clip {self.clips.keys[index]}: frames of shape {tuple(frames.shape)}, but {row.shape} in "
                "other clips; clips of one experiment must have the same shape; make the shards again"
            )
        row[:] = frames.numpy()
        return targets, label

    def _finish(self, coming: "_Coming") -> FrameBatch:
        """Wait for a batch and send it to the device."""
        done = [future.result() for future in coming.rows]
        keys = [self.clips.keys[int(index)] for index in coming.indices]
        pool = None if self.device.type == "cuda" else self._pool
        targets = stack_targets([targets for targets, _ in done], keys, self.arrays, pool)
        targets["label"] = torch.tensor([label for _, label in done])
        return FrameBatch(
            indices=coming.indices,
            frames=coming.frames.to(self.device, non_blocking=True),
            targets={name: target.to(self.device, non_blocking=True) for name, target in targets.items()},
        )


@dataclass(frozen=True, slots=True)
class _Coming:
    """A batch that threads are making: positions, memory of the frames, and what each clip's thread returns."""

    indices: Int64[np.ndarray, " B"]
    frames: UInt8[Tensor, "B T H W 3"]
    rows: list[Future[tuple[dict[str, np.ndarray], int]]]


__all__ = ["ShardFeed"]
