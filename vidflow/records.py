"""The records that stages exchange.

Axes: T frames of a clip, H and W pixels, K tapped depths, N patch tokens, P prefix tokens, D embedding width.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float16, Float64, Int, UInt8

from vidflow.errors import RejectReason

RejectStage = Literal["manifest", "scan", "shard", "extract"]
TrialStatus = Literal["completed", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoItem:
    """One row of a manifest: a video, or a part of one.

    Attributes:
        path: The video file, absolute.
        label: Class name; empty if the task has no classes.
        split: Name of the split, such as `train` or `val`.
        start_seconds: Start of the part on the video's own clock; None is the start of the video.
        end_seconds: End of the part, exclusive; None is the end of the video.
        annotations: Path of an `.npz` with dense ground truth, or None.
        sha256: Digest that the video's bytes must have, in hex, or None.
    """

    path: Path
    label: str
    split: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    annotations: Path | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class AccessPoint:
    """A coded picture at which decoding may start: no frame shown from it on depends on an earlier one.

    Attributes:
        pts: Its presentation time in ticks of the stream.
        dts: Its decoding time in the same ticks.
        position: Its offset in the file, in bytes.
        index: Its index among the video's frames in the order of presentation times.
    """

    pts: int
    dts: int
    position: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """Result of probing a video file.

    Attributes:
        codec: FFmpeg's codec name, such as `h264`.
        pixel_format: FFmpeg's pixel format, such as `yuv420p`.
        width: Width in pixels as displayed (after rotation).
        height: Height in pixels as displayed (after rotation).
        rotation_degrees: Counter-clockwise rotation to apply for display: 0, 90, 180 or 270.
        fps: Mean frame rate over the whole file.
        pts_seconds: Presentation time of every frame, ascending, first frame at its true time.
        duration_seconds: End of the last frame on the same clock.
        mirrored: Whether to mirror the picture left to right for display, before the rotation.
        access_points: Where decoding may start other than at the first packet, by time; empty if not known.
        has_leading_frames: Whether some frame comes after an access point in the file but is shown before it; also
            True if that is not known.
    """

    codec: str
    pixel_format: str
    width: int
    height: int
    rotation_degrees: int
    fps: float
    pts_seconds: Float64[np.ndarray, " frames"]
    duration_seconds: float
    mirrored: bool = False
    access_points: tuple[AccessPoint, ...] = ()
    has_leading_frames: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Decoded frames of one clip.

    Attributes:
        frames: RGB frames, resized and cropped.
        pts_seconds: Presentation time of each frame on the video's clock.
        source_height: Displayed height of the video before resizing, in pixels.
        source_width: Displayed width of the video before resizing, in pixels.
        decoder: Name and version of the decoder that made the frames, such as `decord 0.6.0`.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    pts_seconds: Float64[np.ndarray, " T"]
    source_height: int
    source_width: int
    decoder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTokens:
    """Frozen-encoder tokens of one clip, as stored.

    Tokens are laid out frame by frame and, within a frame, depth by depth; `counts` says how many
    each (frame, depth) has, so ragged counts need no padding.

    Attributes:
        key: The clip's content key.
        label: Class index, or -1 if the task has no classes.
        split: Name of the split.
        pts_seconds: Presentation time of each frame.
        tokens: All patch tokens; `(T*K*N, D)` if all counts are N.
        prefix: Class token and registers of the last tapped depth.
        counts: Tokens per frame and tapped depth.
        sizes: Number of patches each token stands for; None if nothing was merged.
        assignment: For each frame, depth and patch, its token: an index into the clip's tokens of that
            depth, counted frame by frame, or -1 if the patch was dropped; None if nothing was merged.
        annotations: Serialized `.npz` with the dense ground truth of the clip, or empty.
    """

    key: str
    label: int
    split: str
    pts_seconds: Float64[np.ndarray, " T"]
    tokens: Float16[np.ndarray, "tokens D"]
    prefix: Float16[np.ndarray, "T P D"]
    counts: Int[np.ndarray, "T K"]
    sizes: Float[np.ndarray, " tokens"] | None = None
    assignment: Int[np.ndarray, "T K patches"] | None = None
    annotations: bytes | memoryview = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """An input that was left out, and why.

    Attributes:
        key: Clip key if it was known, else empty.
        path: The file as the manifest names it.
        stage: Stage that rejected it.
        reason: Why.
        message: One sentence for the user.
        attempts: How often it was tried.
    """

    key: str
    path: str
    stage: RejectStage
    reason: RejectReason
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """Result of one epoch of a trial.

    Attributes:
        epoch: Number of epochs done, from 1.
        metrics: Named scalars, such as `train/loss` and `val/top1` (in [0, 1]). Those of the last epoch of a completed
            trial may include `test/...`, of the best epoch's weights.
        seconds: Wall seconds of the epoch, training and validation.
        is_best: Whether this epoch's objective is the trial's best so far.
    """

    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Result of one trial, as stored in its directory.

    Attributes:
        key: Fingerprint of everything that decides the trial; its identity everywhere.
        settings: The trial's fields, flat (`core`, `features`, `learning_rate`, `seed`, ...).
        status: `completed`, or `stopped` early by the scheduler, or `failed`.
        history: One result per epoch, in order.
        num_parameters: Trained parameters.
        directory: Folder with `best.safetensors`, `predictions.safetensors` and `result.json`.
        error: Why it failed; empty otherwise.
    """

    key: str
    settings: dict[str, str | int | float | bool | list[int] | None]
    status: TrialStatus
    history: tuple[EpochResult, ...]
    num_parameters: int
    directory: Path
    error: str = ""

    @property
    def test(self) -> dict[str, float]:
        """The metrics `test/...` of the best epoch; empty if it was not measured on a test split."""
        metrics = self.history[-1].metrics if self.history else {}
        return {name: value for name, value in metrics.items() if name.startswith("test/")}

    @property
    def best(self) -> EpochResult | None:
        """The last epoch that was the best so far; None if no epoch is finished."""
        return next((result for result in reversed(self.history) if result.is_best), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageManifest:
    """What a finished stage has made; a stage without a manifest counts as not finished.

    Attributes:
        stage: `synth`, `shard`, `extract/NAME`, `sweep` or `report`.
        fingerprint: Hash of the settings that its folder is named after.
        settings: These settings, if they are recorded.
        edition: Name of the set of clips that are left out for now; empty for none.
        num_files: Files committed: videos, shards, feature files, trials or pages.
        num_clips: Clips in them.
        num_rejects: Number of inputs left out.
        num_bytes: Bytes committed.
        worker_seconds: Time that workers spent on the committed files, summed over workers and over all runs.
        wall_seconds: Wall time of the run that committed the stage, from the start of the stage's work; files of
            earlier runs are not included.
        files: Files that must exist for the stage to count as finished: rows of `file`, `num_bytes`, mostly `sha256`.
        entries: The same rows for the manifests of single files.
        tables: Names of its tables.
        details: What else its readers need, such as `class_names`.
    """

    stage: str
    fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)
    edition: str = ""
    num_files: int
    num_clips: int = 0
    num_rejects: int = 0
    num_bytes: int
    worker_seconds: float
    wall_seconds: float
    files: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


__all__ = [
    "AccessPoint",
    "Clip",
    "ClipTokens",
    "EpochResult",
    "Reject",
    "RejectStage",
    "StageManifest",
    "TrialResult",
    "TrialStatus",
    "VideoInfo",
    "VideoItem",
]
