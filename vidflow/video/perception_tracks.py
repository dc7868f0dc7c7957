"""Convert the published JSON of Perception Test to rows of a manifest and one `.npz` of boxes and points per video.

Axes: F frames of a video, n annotated frames of a track, O objects, Q points.
"""

import filecmp
import json
import math
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.video.published import SPLITS, Videos, published_format

# A day at 100 frames per second; the published videos last half a minute.
_MAX_FRAMES = 24 * 3600 * 100
_KINDS = ("object_tracking", "point_tracking")


def perception_test(
    annotations: Path, videos: Videos, tracks: Path, *, box_gap_seconds: float = 0.0
) -> Iterator[VideoItem]:
    """Yield the videos of every JSON in the folder, and write an `.npz` for each that has boxes or points.

    A video in several files, such as `all_valid.json` and `point_tracking_valid.json`, gives one row with the tracks
    of all files. Labels are empty. A track is not visible in frames without an annotation, nor in frames where the
    object is hidden under a cup (`is_masked`). The time of frame i is i / `frame_rate` seconds.

    Source: Patraucean et al. 2023 (arXiv 2305.13786), and README, `data_visualisation.ipynb` and
    `baselines/single_{object,point}_tracking.ipynb` of google-deepmind/perception_test. A file maps ids of videos to
    `metadata` (split, video_id, frame_rate, num_frames and more) and lists of tracks. `bounding_boxes` are n rows of
    x1 y1 x2 y2, about one a second. `points` are a row of n y and a row of n x, one for every frame that shows the
    point. Both are fractions of the frame. `frame_ids` count the video's frames from 0. The README's `timestamps`
    (microseconds, its issue 14) are not read, because they repeat `frame_ids`.

    Args:
        annotations: Folder of the JSON files.
        videos: The videos, `VIDEO_ID.mp4`.
        tracks: Output folder; created if it is missing.
        box_gap_seconds: Longest time between two boxes across which boxes are interpolated.

    Raises:
        ConfigError: If there is no file, or one is not in the published format.
    """
    for video_id, (file, entry) in _read_entries(annotations).items():
        with published_format(file, video_id):
            split, arrays = SPLITS[entry["metadata"]["split"]], _make_arrays(entry, box_gap_seconds)
        written = _write_arrays(tracks.absolute() / f"{video_id}.npz", arrays) if arrays else None
        yield VideoItem(path=videos.find(f"{video_id}.mp4"), label="", split=split, annotations=written)


def _read_entries(annotations: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return the entry of each video, merged from all files, and the first file that names it."""
    files = sorted(annotations.glob("*.json"))
    if not files:
        raise ConfigError(
            f"{annotations}: got no *.json; wanted the annotations of Perception Test, such as all_train.json"
        )
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in files:
        with published_format(file):
            for video_id, entry in json.loads(file.read_text(encoding="utf-8")).items():
                if video_id != entry["metadata"]["video_id"] or video_id != Path(video_id).name:
                    raise ValueError(f"got the video_id {entry['metadata']['video_id']!r} under the name {video_id!r}")
                _, known = found.setdefault(video_id, (file, {"metadata": entry["metadata"]}))
                known.update({kind: entry[kind] for kind in _KINDS if entry.get(kind) and not known.get(kind)})
    return found


def _make_arrays(entry: Mapping[str, Any], box_gap_seconds: float) -> dict[str, np.ndarray]:
    """Return the arrays that `annotations.py` reads; empty for a video without tracks."""
    num_frames, fps = int(entry["metadata"]["num_frames"]), float(entry["metadata"]["frame_rate"])
    if not 1 <= num_frames <= _MAX_FRAMES or not 0 < fps < math.inf:
        raise ValueError(f"got {num_frames} frames at {fps} per second")
    objects = [_Track(track, "bounding_boxes", num_frames) for track in entry.get("object_tracking", ())]
    points = [_Track(track, "points", num_frames) for track in entry.get("point_tracking", ())]
    if not objects and not points:
        return {}
    for track in objects:
        track.interpolate(round(box_gap_seconds * fps))
    arrays: dict[str, np.ndarray] = {"pts_seconds": np.arange(num_frames) / fps, "frame_size": np.ones(2)}
    for name, tracks, width in (("boxes", objects, 4), ("points", points, 2)):
        # Write both, even if empty, so that clips of all these videos hold the same arrays.
        arrays[name] = np.array([track.values for track in tracks], np.float32).reshape(-1, num_frames, width)
        arrays[f"{name}_visible"] = np.array([track.visible for track in tracks], bool).reshape(-1, num_frames)
    return arrays


class _Track:
    """One object or point in every frame of its video.

    Attributes:
        values: Fractions of the frame: x0 y0 x1 y1 of a box, x y of a point; 0 where it is not annotated.
        visible: Whether it is annotated and not hidden, frame by frame.
    """

    values: Float32[np.ndarray, "F C"]
    visible: Bool[np.ndarray, " F"]

    def __init__(self, track: Mapping[str, Any], name: str, num_frames: int) -> None:
        frames = _read_frame_ids(track, num_frames)
        drawn = _read_coordinates(track, name, len(frames))
        hidden = np.asarray(track.get("is_masked") or np.zeros(len(frames)), bool)
        if hidden.shape != frames.shape:
            raise ValueError(f"track {track['id']} has {hidden.size} is_masked, wanted {len(frames)}")
        self.values = np.zeros((num_frames, drawn.shape[1]), np.float32)
        self.values[frames] = drawn
        self.visible = np.zeros(num_frames, bool)
        self.visible[frames] = ~hidden
        self._annotated = np.sort(frames)

    def interpolate(self, longest: int) -> None:
        """Fill the frames between two visible boxes that are at most `longest` frames apart."""
        for first, last in pairwise(self._annotated.tolist()):
            if last - first <= longest and self.visible[first] and self.visible[last]:
                weight = np.linspace(0, 1, last - first + 1, dtype=np.float32)[:, None]
                self.values[first : last + 1] = self.values[first] * (1 - weight) + self.values[last] * weight
                self.visible[first : last + 1] = True


def _read_frame_ids(track: Mapping[str, Any], num_frames: int) -> Int64[np.ndarray, " n"]:
    frames = np.asarray(track["frame_ids"] or np.empty(0, np.int64))
    if frames.ndim != 1 or frames.dtype != np.int64 or len(np.unique(frames)) != len(frames):
        raise ValueError(f"track {track['id']} has the frame_ids {frames.tolist()}, wanted different whole numbers")
    if ((frames < 0) | (frames >= num_frames)).any():
        raise ValueError(
            f"track {track['id']} is in frames {frames.min()} to {frames.max()} of a video of {num_frames}"
        )
    return frames


def _read_coordinates(track: Mapping[str, Any], name: str, num_annotated: int) -> Float32[np.ndarray, "n C"]:
    """Return the coordinates of a track, x before y.

    The README describes points as rows of y x, the notebooks as a row of y and a row of x. The files follow the
    notebooks. The README's layout is read too, except for tracks of two points, where both layouts look the same.
    """
    with np.errstate(over="ignore"):  # infinities are refused below
        drawn = np.asarray(track[name], np.float64).astype(np.float32)
    is_box, wanted = name == "bounding_boxes", (num_annotated, 4 if name == "bounding_boxes" else 2)
    if not is_box and drawn.shape == (2, num_annotated):
        drawn = drawn.T
    if drawn.size == num_annotated == 0:
        drawn = np.empty(wanted, np.float32)
    if drawn.shape != wanted or not np.isfinite(drawn).all():
        raise ValueError(f"track {track['id']} has {name} of shape {drawn.shape}, wanted {wanted} finite numbers")
    return drawn if is_box else drawn[:, ::-1]


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    if path.is_file() and filecmp.cmp(partial, path, shallow=False):
        partial.unlink()  # a file that is written again counts as changed, and is scanned again
    else:
        os.replace(partial, path)
    return path
