"""From manifest rows and scans to clips with content keys, in an order that depends on content alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vidflow.config.fingerprints import fingerprint
from vidflow.errors import VideoError
from vidflow.records import Reject, VideoItem
from vidflow.stages.scan import ScannedVideo, as_video_info
from vidflow.video.sampling import plan_clip_times


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPlan:
    """One clip to decode.

    Attributes:
        key: Hash of the video's content and the times taken from it.
        path: The video.
        sha256: Digest of the video.
        label: Class name.
        label_index: Its number among the class names, or -1.
        split: Name of the split.
        times: Moments wanted, seconds on the video's clock.
        annotations: Path of the dense ground truth, or empty.
        annotations_sha256: Its digest, or empty.
    """

    key: str
    path: str
    sha256: str
    label: str
    label_index: int
    split: str
    times: tuple[float, ...]
    annotations: str
    annotations_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One tar to make: its name and its clips, sorted by key."""

    file: str
    clips: tuple[ClipPlan, ...]


def list_class_names(items: Sequence[VideoItem]) -> list[str]:
    """Return the sorted labels; rejected rows count too, so that a broken video moves no class number."""
    return sorted({item.label for item in items if item.label})


def plan_clips(
    items: Sequence[VideoItem],
    scans: Mapping[str, ScannedVideo],
    *,
    mode: Literal["uniform", "center", "windows"],
    num_frames: int,
    fps: float,
    stride_seconds: float,
) -> tuple[list[ClipPlan], list[Reject]]:
    """Return the clips of all usable rows, sorted by key, and the rows that are left out.

    The first row of a content wins; a second one is a reject, with a sentence of its own where the two
    disagree on label or split.
    """
    numbers = {name: index for index, name in enumerate(list_class_names(items))}
    clips: dict[str, ClipPlan] = {}
    rejects = []
    for item in items:
        scan = scans[str(item.path)]
        try:
            if scan.reason:
                raise VideoError(scan.reason, scan.message)
            grids = plan_clip_times(
                as_video_info(scan), item, mode=mode, num_frames=num_frames, fps=fps, stride_seconds=stride_seconds
            )
            for times in grids:
                clip = _clip(item, scans, tuple(float(t) for t in times), numbers.get(item.label, -1))
                _refuse_twin(clips.get(clip.key), clip)
                clips[clip.key] = clip
        except VideoError as error:
            rejects.append(Reject(key="", path=str(item.path), stage="scan", reason=error.reason, message=str(error)))
    return [clips[key] for key in sorted(clips)], rejects


def plan_shards(clips: Sequence[ClipPlan], clips_per_shard: int) -> list[ShardPlan]:
    """Cut the sorted clips into shards."""
    starts = range(0, len(clips), clips_per_shard)
    return [
        ShardPlan(file=f"shard-{number:06d}.tar", clips=tuple(clips[start : start + clips_per_shard]))
        for number, start in enumerate(starts)
    ]


def content_digest(clips: Sequence[ClipPlan]) -> str:
    """Return the name of everything that a plan's clips hold, whatever their files are called."""
    return fingerprint(
        [[clip.key, clip.label_index, clip.label, clip.split, clip.annotations_sha256] for clip in clips]
    )


def _clip(item: VideoItem, scans: Mapping[str, ScannedVideo], times: tuple[float, ...], label_index: int) -> ClipPlan:
    scan = scans[str(item.path)]
    annotations = scans[str(item.annotations)] if item.annotations else None
    if annotations is not None and annotations.reason:
        raise VideoError("Annotations", f"{item.path}: its annotations cannot be read: {annotations.message}")
    return ClipPlan(
        key=fingerprint([scan.sha256, times]),
        path=str(item.path),
        sha256=scan.sha256,
        label=item.label,
        label_index=label_index,
        split=item.split,
        times=times,
        annotations=str(item.annotations or ""),
        annotations_sha256=annotations.sha256 if annotations else "",
    )


def _refuse_twin(first: ClipPlan | None, second: ClipPlan) -> None:
    if first is None:
        return
    if first.split != second.split:
        raise VideoError(
            "Leak",
            f"{second.path}: same content as {first.path}, which is in split {first.split!r}, "
            f"not {second.split!r}; kept there only",
        )
    if first.label != second.label:
        raise VideoError(
            "LabelConflict",
            f"{second.path}: same content as {first.path}, which is labelled "
            f"{first.label!r}, not {second.label!r}; the first label stands",
        )
    raise VideoError("Duplicate", f"{second.path}: same content as {first.path}; kept once")
