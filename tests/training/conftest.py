"""Small real feature sets for the tests of training."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from feature_sets import finish_features

from vidflow.records import ClipTokens
from vidflow.store.features import FeatureReader

NUM_TRAIN, NUM_VAL = 24, 12
Annotations = dict[str, np.ndarray]


def write_feature_set(
    directory: Path,
    tokens: np.ndarray,
    labels: Sequence[int],
    splits: Sequence[str],
    *,
    num_prefix_tokens: int = 0,
    annotations: Sequence[Annotations] | None = None,
    file_sizes: Sequence[int] | None = None,
) -> FeatureReader:
    """Write `tokens (clips, T, K, N, D)` as a finished feature set, in one file or several."""
    num_clips, num_frames, num_depths, num_tokens, embed_dim = tokens.shape
    rng = np.random.default_rng(7)
    metadata = {
        "embed_dim": embed_dim,
        "num_prefix_tokens": num_prefix_tokens,
        "grid": [1, num_tokens],
        "depths": list(range(num_depths)),
        "num_frames": num_frames,
        "class_names": [f"class{label}" for label in range(max(labels) + 1)],
        "fingerprint": "0" * 16,
    }
    clips = [
        ClipTokens(
            key=f"clip{index:03d}",
            label=labels[index],
            split=splits[index],
            pts_seconds=np.arange(num_frames) / 8.0,
            tokens=tokens[index].reshape(-1, embed_dim).astype(np.float16),
            prefix=rng.normal(size=(num_frames, num_prefix_tokens, embed_dim)).astype(np.float16),
            counts=np.full((num_frames, num_depths), num_tokens, dtype=np.int32),
            annotations=b"" if annotations is None else npz(annotations[index]),
        )
        for index in range(num_clips)
    ]
    files, start = {}, 0
    for number, size in enumerate(file_sizes or [num_clips]):
        files[f"features-{number}.arrow"] = clips[start : start + size]
        start += size
    return finish_features(directory, files, metadata)


def npz(arrays: Annotations) -> bytes:
    """Return arrays as the bytes of an `.npz`."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def draw_tokens(num_clips: int, *, num_frames=3, num_depths=1, num_tokens=4, embed_dim=16, seed=0) -> np.ndarray:
    """Return random tokens."""
    shape = (num_clips, num_frames, num_depths, num_tokens, embed_dim)
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture(scope="session")
def feature_set() -> Callable[..., FeatureReader]:
    """The writer of feature sets."""
    return write_feature_set


@pytest.fixture(scope="session")
def noise_features(tmp_path_factory) -> FeatureReader:
    """36 clips of noise in three classes, with a class token."""
    labels = [index % 3 for index in range(NUM_TRAIN + NUM_VAL)]
    splits = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL
    return write_feature_set(
        tmp_path_factory.mktemp("noise"), draw_tokens(len(labels)), labels, splits, num_prefix_tokens=1
    )


@pytest.fixture(scope="session")
def annotated_features(tmp_path_factory) -> FeatureReader:
    """12 clips with boxes, points, depth and camera motion; the number of boxes and points differs."""
    rng = np.random.default_rng(3)
    num_clips, num_frames, side = 12, 3, 16
    annotations = []
    for index in range(num_clips):
        num_boxes, num_points = 1 + index % 3, 2 + index % 2
        corner = rng.uniform(0.1, 0.4, size=(num_boxes, num_frames, 2))
        annotations.append(
            {
                "boxes": np.concatenate([corner, corner + 0.4], -1).astype(np.float32),
                "boxes_visible": np.ones((num_boxes, num_frames), bool),
                "points": rng.uniform(size=(num_points, num_frames, 2)).astype(np.float32),
                "points_visible": np.ones((num_points, num_frames), bool),
                "query_frames": np.zeros(num_points, np.int64),
                "depth": rng.uniform(1, 5, size=(num_frames, side, side)).astype(np.float16),
                "camera_motion": np.tile(np.float32([0.1, 0, 0, 1, 0, 0, 0, 1, 0]), (num_frames, 1)),
            }
        )
    return write_feature_set(
        tmp_path_factory.mktemp("annotated"),
        draw_tokens(num_clips, num_frames=num_frames),
        [-1] * num_clips,
        ["train"] * 8 + ["val"] * 4,
        annotations=annotations,
        file_sizes=[5, 7],
    )
