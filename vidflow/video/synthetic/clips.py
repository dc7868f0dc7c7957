"""List, render and write synthetic videos with ground truth.

Axes: F frames, H and W pixels, 3 the channels red, green, blue.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
from jaxtyping import UInt8

from vidflow.records import VideoItem
from vidflow.video.ffmpeg import write_h264
from vidflow.video.synthetic.ground_truth import annotate
from vidflow.video.synthetic.motion import CLASS_NAMES, ClassName
from vidflow.video.synthetic.rendering import render_scene
from vidflow.video.synthetic.scene import draw_scene

Split = Literal["train", "val"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpec:
    """One video to render.

    Attributes:
        index: Position within its split, from 0.
        label: Class of its motion.
        split: Name of the split.
        seed: Seed of every random choice in it; no other listed video has the same.
    """

    index: int
    label: ClassName
    split: Split
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedVideo:
    """Frames of a rendered video and, if requested, the arrays of `annotate`.

    Attributes:
        frames: RGB frames.
        annotations: Dense ground truth by name; empty if not requested.
    """

    frames: UInt8[np.ndarray, "F H W 3"]
    annotations: dict[str, np.ndarray]


def list_videos(*, num_train: int, num_val: int, seed: int) -> list[VideoSpec]:
    """List the videos of a data set, with the classes in turn. A longer list starts with the shorter one's videos.

    Args:
        num_train: Number of training videos.
        num_val: Number of validation videos.
        seed: Seed of the data set, at least 0; data sets with different seeds share no video.

    Raises:
        ValueError: If an argument is negative.
    """
    if min(num_train, num_val, seed) < 0:
        raise ValueError(f"got num_train={num_train}, num_val={num_val}, seed={seed}; wanted numbers of at least 0")
    sizes: dict[Split, int] = {"train": num_train, "val": num_val}
    return [
        VideoSpec(
            index=index,
            label=CLASS_NAMES[index % len(CLASS_NAMES)],
            split=split,
            # Separate bits, not a hash: two videos of any list never share a seed.
            seed=seed << 32 | number << 31 | index,
        )
        for number, (split, size) in enumerate(sizes.items())
        for index in range(size)
    ]


def render_video(
    *,
    label: ClassName,
    seed: int,
    size: int,
    num_frames: int,
    fps: Fraction | int,
    difficulty: float,
    camera_travel: float = 0.5,
    camera_turn: float = 4.0,
    annotations: bool = True,
) -> RenderedVideo:
    """Render one video; with the same seed, the partner class gives the same frames in reverse order.

    Args:
        label: Class of the motion.
        seed: Source of every choice, at least 0.
        size: Height and width in pixels, even.
        num_frames: Number of frames, at least 2; the motion always fills all of them.
        fps: Frames per second.
        difficulty: Strength of camera shake, distractors and occluder, in [0, 1].
        camera_travel: Largest distance that the camera moves along one axis from the middle of the clip to
            either end, in metres, in [0, 1].
        camera_turn: Largest sideways turn in the same time, in degrees, in [0, 15]; half for other axes.
        annotations: Whether to compute the dense ground truth.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if size < 16 or size % 2 or num_frames < 2 or fps <= 0:
        raise ValueError(
            f"got size={size}, num_frames={num_frames}, fps={fps}; "
            "wanted an even size of at least 16 pixels, at least 2 frames and fps above 0"
        )
    if not 0 <= difficulty <= 1 or not 0 <= camera_travel <= 1:
        raise ValueError(f"got difficulty={difficulty}, camera_travel={camera_travel}; wanted both in [0, 1]")
    if not 0 <= camera_turn <= 15:
        raise ValueError(f"got camera_turn={camera_turn} degrees, wanted it in [0, 15]")
    scene = draw_scene(
        label,
        seed=seed,
        num_frames=num_frames,
        difficulty=difficulty,
        camera_travel=camera_travel,
        camera_turn=camera_turn,
    )
    rendering = render_scene(scene, size=size)
    truth = annotate(scene, rendering, fps=fps, seed=seed) if annotations else {}
    return RenderedVideo(frames=rendering.frames, annotations=truth)


def video_path(directory: Path, spec: VideoSpec) -> Path:
    """Return the file of a listed video. If it exists, it and its annotations are complete."""
    return directory.resolve() / f"{spec.split}_{spec.index:05d}_{spec.label}.mp4"


def write_video(
    directory: Path,
    spec: VideoSpec,
    *,
    size: int,
    num_frames: int,
    fps: Fraction | int,
    difficulty: float,
    camera_travel: float = 0.5,
    camera_turn: float = 4.0,
    annotations: bool = False,
) -> VideoItem:
    """Render a listed video into `directory`: an H.264 `.mp4` and, if requested, an `.npz` of the same name.

    The same arguments give the same bytes. A file appears complete or not at all; the video appears last.

    Args:
        directory: Existing folder.
        spec: Which video.
        size: Height and width in pixels, even.
        num_frames: Number of frames, at least 2.
        fps: Frames per second.
        difficulty: Strength of camera shake, distractors and occluder, in [0, 1].
        camera_travel: As for `render_video`.
        camera_turn: As for `render_video`.
        annotations: Whether to write the dense ground truth.

    Raises:
        ValueError: If an argument is out of its range.
    """
    video = render_video(
        label=spec.label,
        seed=spec.seed,
        size=size,
        num_frames=num_frames,
        fps=fps,
        difficulty=difficulty,
        camera_travel=camera_travel,
        camera_turn=camera_turn,
        annotations=annotations,
    )
    path = video_path(directory, spec)
    if annotations:
        with _write_atomically(path.with_suffix(".npz")) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **video.annotations)
    with _write_atomically(path) as partial:
        write_h264(partial, video.frames, fps=fps)
    truth = path.with_suffix(".npz") if annotations else None
    return VideoItem(path=path, label=spec.label, split=spec.split, annotations=truth)


@contextmanager
def _write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
