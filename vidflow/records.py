"""The nouns that cross a stage border.

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
        label: Class name; empty where the task has no classes.
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
    """A coded picture at which decoding may start: nothing shown from it on leans on what came before.

    Attributes:
        pts: Its presentation time in ticks of the stream.
        dts: Its decoding time in the same.
        position: Where it lies in the file, in bytes.
        index: Its place among the video's frames by time.
    """

    pts: int
    dts: int
    position: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What probing a video file yields.

    Attributes:
        codec: FFmpeg's codec name, such as `h264`.
        pixel_format: FFmpeg's pixel format, such as `yuv420p`.
        width: Width in pixels as displayed (after rotation).
        height: Height in pixels as displayed (after rotation).
        rotation_degrees: Counter-clockwise rotation that display asks for: 0, 90, 180 or 270.
        fps: Mean frame rate over the whole file.
        pts_seconds: Presentation time of every frame, ascending, first frame at its true time.
        duration_seconds: End of the last frame on the same clock.
        mirrored: Whether display asks for a picture mirrored left to right, before the rotation.
        access_points: Where decoding may start besides the first packet, by time; empty where that is not known.
        has_leading_frames: Whether some frame is shown before the access point that it follows in the file, or that
            is not known.
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
    each (frame, depth) has, so that ragged counts need no padding.

    Attributes:
        key: The clip's content key.
        label: Class index, or -1 where the task has none.
        split: Name of the split.
        pts_seconds: Presentation time of each frame.
        tokens: All patch tokens; `(T*K*N, D)` where counts are all N.
        prefix: Class token and registers of the last tapped depth.
        counts: Tokens per frame and tapped depth.
        sizes: Number of patches each token stands for; None where nothing was merged.
        assignment: For each frame, depth and patch, its token: a number among the clip's tokens of that
            depth, counted frame by frame, or -1 where the patch was dropped; None where nothing was merged.
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
        key: Clip key where one was known, else empty.
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
    """What one epoch of a trial yields.

    Attributes:
        epoch: Number of epochs done, from 1.
        metrics: Named scalars, such as `train/loss` and `val/top1` (in [0, 1]).
        seconds: Wall seconds of the epoch, training and validation.
        is_best: Whether the trial's objective is the best so far.
    """

    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One trial, as its directory holds it.

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
    settings: dict[str, str | int | float | bool | None]
    status: TrialStatus
    history: tuple[EpochResult, ...]
    num_parameters: int
    directory: Path
    error: str = ""

    @property
    def best(self) -> EpochResult | None:
        """The last epoch that was the best so far; None before the first."""
        return next((result for result in reversed(self.history) if result.is_best), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageManifest:
    """What a finished stage has made; without one the stage counts as not finished.

    Attributes:
        stage: `synth`, `shard`, `extract/NAME`, `sweep` or `report`.
        fingerprint: Of the settings that name its place.
        settings: These settings, where they are kept.
        edition: Names the clips that are left out for now; empty for none.
        num_files: Files committed: videos, shards, feature files, trials or pages.
        num_clips: Clips in them.
        num_rejects: Inputs left out.
        num_bytes: Bytes committed.
        worker_seconds: Time that workers spent on what is there, summed over workers and over all runs.
        wall_seconds: Time that passed in the run that committed it, from the start of the stage's work; what was there
            already took none of it.
        files: What must be there for the stage to count as finished: rows of `file`, `num_bytes` and mostly `sha256`.
        entries: The same of the manifests of single files.
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
