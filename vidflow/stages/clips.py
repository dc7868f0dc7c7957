"""Turn manifest rows and scans into clips with content keys, in an order that depends on content alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vidflow.config.fingerprints import fingerprint
from vidflow.errors import VideoError
from vidflow.records import Reject, VideoItem
from vidflow.stages.scan import ScanInput, ScannedVideo, inputs_of
from vidflow.stages.spans import Taken, find_leak, take
from vidflow.video.sampling import Mode, choose_clip_times, row_span


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenClip:
    """One clip to decode.

    Attributes:
        key: Hash of the video's content and the times taken from it.
        path: The video.
        sha256: Digest of the video.
        label: Class name.
        label_index: Its number among the class names, or -1.
        split: Name of the split.
        times: Times of the frames to decode, seconds on the video's clock.
        annotations: Path of the dense ground truth, or empty.
        annotations_sha256: Its digest, or empty.
        stamps: Path -> size and time of the last write, of each of these files when it was scanned.
        video: Hash of the video's content and the span of its row; the clips of a row share it.
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
    stamps: dict[str, tuple[int, int]]
    video: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardUnit:
    """One tar to make.

    Attributes:
        file: Its name.
        clips: Its clips, sorted by key.
        only: Try only these of them, from a first to a last (exclusive) position, and commit nothing.
        left_out: Positions of clips that kill their worker; they become rejects.
    """

    file: str
    clips: tuple[ChosenClip, ...]
    only: tuple[int, int] | None = None
    left_out: tuple[int, ...] = ()


def list_class_names(items: Sequence[VideoItem]) -> list[str]:
    """Return the sorted labels; rejected rows count too, so that a broken video changes no class number."""
    return sorted({item.label for item in items if item.label})


def choose_clips(
    items: Sequence[VideoItem],
    scans: Mapping[ScanInput, ScannedVideo],
    *,
    mode: Mode,
    num_frames: int,
    fps: float,
    stride_seconds: float,
    num_clips: int = 1,
) -> tuple[list[ChosenClip], list[Reject]]:
    """Return the clips of all usable rows, sorted by key, and the rows that are left out.

    A row gives either all its clips or one reject. Contents and times are compared, never names. If two rows conflict,
    the first one is kept. A rejected row does not block later rows.

    - `Leak`: another split already has some of the row's seconds of the same content.
    - `LabelConflict`: an earlier row gave one of its clips another label or other ground truth.
    - `Duplicate`: earlier rows gave all of its clips. If they gave only some, those are kept once.
    """
    numbers = {name: index for index, name in enumerate(list_class_names(items))}
    kept = _Kept()
    rejects = []
    for item in items:
        try:
            scan = _usable_scan(item, scans)
            span = row_span(item, first=scan.start_seconds, last=scan.end_seconds)
            grids = choose_clip_times(
                item,
                span,
                mode=mode,
                num_frames=num_frames,
                fps=fps,
                stride_seconds=stride_seconds,
                num_clips=num_clips,
                frames_in_file=scan.num_frames,
                seconds_in_file=scan.end_seconds - scan.start_seconds,
            )
            number = numbers.get(item.label, -1)
            kept.add([_clip(item, scans, span, tuple(times.tolist()), number) for times in grids], span)
        except VideoError as error:
            rejects.append(
                Reject(
                    key="",
                    path=str(item.path),
                    stage="scan",
                    reason=error.reason,
                    message=str(error),
                    attempts=error.attempts,
                )
            )
    return [kept.clips[key] for key in sorted(kept.clips)], rejects


def cut_shards(clips: Sequence[ChosenClip], clips_per_shard: int) -> list[ShardUnit]:
    """Cut the sorted clips into shards."""
    starts = range(0, len(clips), clips_per_shard)
    return [
        ShardUnit(file=f"shard-{number:06d}.tar", clips=tuple(clips[start : start + clips_per_shard]))
        for number, start in enumerate(starts)
    ]


def content_digest(clips: Sequence[ChosenClip]) -> str:
    """Return the hash of everything that clips hold; the names of their files do not matter."""
    return fingerprint(
        [[clip.key, clip.label_index, clip.label, clip.split, clip.annotations_sha256] for clip in clips]
    )


@dataclass(slots=True)
class _Kept:
    """Result of the rows so far: clips by key, and the seconds taken of each content, by the content's digest."""

    clips: dict[str, ChosenClip] = field(default_factory=dict)
    taken: dict[str, list[Taken]] = field(default_factory=dict)

    def add(self, row: Sequence[ChosenClip], span: tuple[float, float]) -> None:
        """Add the clips of one row, which are all of the same content, or raise without adding any."""
        first = row[0]
        taken = self.taken.setdefault(first.sha256, [])
        wanted = Taken(*span, first.split, first.path)
        if (other := find_leak(taken, wanted)) is not None:
            raise VideoError(
                "Leak",
                f"{first.path}: its span {wanted.start:.3f} to {wanted.end:.3f} s shares seconds of the same content "
                f"with {other.path}, {other.start:.3f} to {other.end:.3f} s, which is in split {other.split!r}, "
                f"not {first.split!r}; kept there only",
            )
        twins = [(self.clips[clip.key], clip) for clip in row if clip.key in self.clips]
        for earlier, clip in twins:
            _refuse_conflict(earlier, clip)
        if len(twins) == len(row):
            raise VideoError("Duplicate", f"{first.path}: same content as {twins[0][0].path}; kept once")
        take(taken, wanted)
        for clip in row:
            self.clips.setdefault(clip.key, clip)


def _usable_scan(item: VideoItem, scans: Mapping[ScanInput, ScannedVideo]) -> ScannedVideo:
    """Return the scan of a row's video; raise if the video or its ground truth was refused."""
    scan, *truth = [scans[each] for each in inputs_of(item)]
    if scan.reason:
        raise VideoError(scan.reason, scan.message, attempts=scan.attempts)
    if item.sha256 not in (None, scan.sha256):
        raise VideoError(
            "OtherBytes",
            f"{item.path}: got sha256 {scan.sha256}, wanted {item.sha256} as the manifest says; fetch it again",
        )
    for annotations in truth:
        if annotations.reason:
            raise VideoError(
                "Annotations",
                f"{item.path}: its annotations cannot be read: {annotations.message}",
                attempts=annotations.attempts,
            )
    return scan


def _clip(
    item: VideoItem,
    scans: Mapping[ScanInput, ScannedVideo],
    span: tuple[float, float],
    times: tuple[float, ...],
    label_index: int,
) -> ChosenClip:
    files = [scans[each] for each in inputs_of(item)]
    return ChosenClip(
        key=fingerprint([files[0].sha256, times]),
        path=str(item.path),
        sha256=files[0].sha256,
        label=item.label,
        label_index=label_index,
        split=item.split,
        times=times,
        annotations=str(item.annotations or ""),
        annotations_sha256=files[1].sha256 if len(files) > 1 else "",
        stamps={file.path: (file.num_bytes, file.modified_ns) for file in files},
        video=fingerprint([files[0].sha256, span]),
    )


def _refuse_conflict(first: ChosenClip, second: ChosenClip) -> None:
    if first.label != second.label:
        raise VideoError(
            "LabelConflict",
            f"{second.path}: same content as {first.path}, which is labelled "
            f"{first.label!r}, not {second.label!r}; the first label stands",
        )
    if first.annotations_sha256 != second.annotations_sha256:
        raise VideoError(
            "LabelConflict",
            f"{second.path}: same content as {first.path}, with annotations {second.annotations or 'none'} that are "
            f"not those of {first.annotations or 'none'}; the first ones stand",
        )
