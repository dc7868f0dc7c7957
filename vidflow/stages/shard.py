"""Sharding: decode the clips of a unit and pack them into one committed tar."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidflow.ahead import make_ahead
from vidflow.counts import Count, uncounted
from vidflow.errors import VideoError
from vidflow.files import FileState, file_sha256, file_state, make_local
from vidflow.records import Reject
from vidflow.stages.clips import ChosenClip, ShardUnit
from vidflow.stages.killers import file_to_write, is_wanted, refuse_killer
from vidflow.stages.transient import TRANSIENT, Limits, describe_attempt, try_twice
from vidflow.store.layout import FileEntry, publish_entry, remove
from vidflow.store.shards import ShardSample, write_shard
from vidflow.tar_members import short_name
from vidflow.video.encode import EncodedClip
from vidflow.video.sandbox import Sandbox
from vidflow.video.sandboxed import encode_unchanged


class ShardBuilder:
    """Makes shards; decoding runs in a process that can be killed."""

    def __init__(self, *, directory: Path, timeout_seconds: float, memory_mib: int, **encoding: Any) -> None:
        """Keep the settings; the decoder starts with the first clip.

        Args:
            directory: Folder of the shards.
            timeout_seconds: Wall time that one video may take.
            memory_mib: Memory that the decoder may use, in MiB.
            encoding: Other arguments of `encode_clip` than the video and its times.
        """
        self._directory = directory
        self._encoding = encoding
        self._limits = Limits(timeout_seconds=timeout_seconds, memory_mib=memory_mib)
        self._sandbox = Sandbox(timeout_seconds=timeout_seconds, memory_mib=memory_mib)

    def __call__(self, unit: ShardUnit, count: Count = uncounted) -> FileEntry:
        """Decode, pack and commit one shard; its manifest lists the clips that cannot be decoded, and the members."""
        started = time.perf_counter()
        rejects: list[Reject] = []
        states: dict[str, FileState] = {}
        path = self._directory / file_to_write(unit.file, unit.only)
        samples = self._samples(unit, rejects, states, count)
        self._sandbox.start()  # here, because it would die with the thread that decodes ahead
        members = write_shard(path, make_ahead(samples))
        entry = FileEntry(
            file=path.name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_clips=len(members),
            seconds=time.perf_counter() - started,
            rejects=[asdict(reject) for reject in rejects],
            details={"members": members, **describe_attempt(self._limits, states)},
        )
        if unit.only is None:
            publish_entry(self._directory, entry)
        else:
            remove(path)
        return entry.without_members()

    def _samples(
        self, unit: ShardUnit, rejects: list[Reject], states: dict[str, FileState], count: Count
    ) -> Iterator[ShardSample]:
        for position, clip in enumerate(unit.clips):
            if not is_wanted(position, unit.only):
                continue
            if position in unit.left_out:
                states.update({path: file_state(path) for path in clip.stamps})
                rejects.append(refuse_killer(clip.key, clip.path, stage="shard"))
                count(1, num_rejects=1)
                continue
            sample = self._sample(clip, rejects, states)
            count(1, num_rejects=sample is None)
            if sample is not None:
                yield sample

    def _sample(self, clip: ChosenClip, rejects: list[Reject], states: dict[str, FileState]) -> ShardSample | None:
        before = {path: file_state(path) for path in clip.stamps}  # a repair during decoding then shows as a change
        try:
            encoded = try_twice(lambda: self._encode(clip))
        except VideoError as error:
            if error.reason in TRANSIENT:
                states.update(before)
            rejects.append(
                Reject(
                    key=clip.key,
                    path=clip.path,
                    stage="shard",
                    reason=error.reason,
                    message=str(error),
                    attempts=error.attempts,
                )
            )
            return None
        return self._pack(clip, encoded)

    def _pack(self, clip: ChosenClip, encoded: EncodedClip) -> ShardSample:
        origin = {
            "label": clip.label,
            "split": clip.split,
            "source": short_name(clip.path),
            "sha256": clip.sha256,
            "video": clip.video,
            **({} if clip.crop is None else {"crop": clip.crop}),
        }
        return ShardSample(
            key=clip.key,
            label=clip.label_index,
            images=encoded.images,
            image_format=self._encoding["image_format"],
            metadata={**encoded.metadata, **origin},
            annotations=encoded.annotations,
        )

    def _encode(self, clip: ChosenClip) -> EncodedClip:
        for path in clip.stamps:
            make_local(path)
        encoded: EncodedClip = self._sandbox.call(
            encode_unchanged,
            Path(clip.path),
            clip.times,
            stamps=clip.stamps,
            annotations=clip.annotations,
            **{**self._encoding, **({} if clip.crop is None else {"crop": clip.crop})},
        )
        return encoded
