"""A finished shard stage on disk, for tests that need a small real one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidflow.files import file_sha256
from vidflow.stages.address import Address
from vidflow.stages.finish import finish_stage
from vidflow.store.features import ClipRow
from vidflow.store.layout import FileEntry, publish_entry
from vidflow.store.shard_clips import ShardClips
from vidflow.store.shards import ShardSample, write_shard
from vidflow.video.encode import compress


def finish_shards(
    directory: Path,
    frames: np.ndarray,
    labels: Sequence[int],
    splits: Sequence[str],
    *,
    clips_per_shard: int = 5,
    annotations: Sequence[bytes] | None = None,
) -> ShardClips:
    """Write `frames (clips, T, H, W, 3)` as lossless shards and commit them, and return a reader of them."""
    rows, entries = [], []
    for start in range(0, len(frames), clips_per_shard):
        name = f"shard-{start // clips_per_shard:06d}.tar"
        samples = [
            ShardSample(
                key=f"{index:016x}",
                label=labels[index],
                images=[compress(frame, "png", 1) for frame in frames[index]],
                image_format="png",
                metadata={"split": splits[index], "pts_seconds": [step / 8 for step in range(frames.shape[1])]},
                annotations=annotations[index] if annotations is not None else b"",
            )
            for index in range(start, min(start + clips_per_shard, len(frames)))
        ]
        members = write_shard(directory / name, samples)
        path = directory / name
        entry = FileEntry(
            file=name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_clips=len(samples),
            seconds=0.0,
            rejects=[],
            details={"members": members},
        )
        publish_entry(directory, entry)
        entries.append(entry)
        rows += [
            ClipRow(key=sample.key, label=sample.label, split=sample.metadata["split"], file=name, row=row)
            for row, sample in enumerate(samples)
        ]
    names = [f"class{label}" for label in range(max(labels) + 1)]
    address = Address(directory=directory, settings={})
    finish_stage(address, stage="shard", entries=entries, clips=rows, rejects=[], wall_seconds=0.0, class_names=names)
    return ShardClips(directory)
