"""Perception Test's boxes and points, from JSON in the published format to the ground truth of a sampled clip."""

import io
import json

import numpy as np
import pytest
from clip_factory import numbered_frames, read_number

from vidflow.errors import ConfigError
from vidflow.video.datasets import adapt
from vidflow.video.encode import decompress, encode_clip
from vidflow.video.ffmpeg import write_h264
from vidflow.video.manifest import read_manifest, write_manifest

FPS, NUM_FRAMES, HEIGHT, WIDTH = 30, 61, 64, 128


def _metadata(video_id, **changed):
    return {
        "split": "valid",
        "video_id": video_id,
        "frame_rate": FPS,
        "num_frames": NUM_FRAMES,
        "resolution": [1080, 2160],  # the published size; the videos here have been made smaller
        "audio_samples": 96000,
        "audio_sample_rate": 48000,
        "is_cup_game": 0,
        "is_camera_moving": 0,
    } | changed


def _box_track(number, boxes, frame_ids=(0, 30, 60), **changed):
    return {
        "id": number,
        "label": "red cup",
        "is_occluder": 0,
        "bounding_boxes": boxes,
        "initial_tracking_box": [1] + [0] * (len(frame_ids) - 1),
        "frame_ids": list(frame_ids),
        "timestamps": [frame * 1_000_000 // FPS for frame in frame_ids],
        "is_masked": [0] * len(frame_ids),
    } | changed


def _point_track(number, points, frame_ids, **changed):
    return (
        {"id": number, "label": "corner", "parent_objects": [0], "frame_ids": list(frame_ids)}
        | {"points": points}
        | changed
    )


def _entry(video_id="video_1", *, boxes=(), points=(), **changed):
    unused = ("action_localisation", "sound_localisation", "mc_question", "grounded_question")
    return {
        "metadata": _metadata(video_id, **changed),
        "object_tracking": list(boxes),
        "point_tracking": list(points),
    } | {name: [] for name in unused}


def _adapt(tmp_path, files, **kwargs):
    for folder in ("json", "videos"):
        (tmp_path / folder).mkdir(exist_ok=True)
    for name, entries in files.items():
        content = {entry["metadata"]["video_id"]: entry for entry in entries}
        (tmp_path / "json" / name).write_text(json.dumps(content))
    return adapt("perception_test", annotations=tmp_path / "json", videos=tmp_path / "videos", **kwargs)


def _load(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


MOVING = [[0.25, 0.0, 0.5, 0.5], [0.5, 0.25, 0.75, 0.75], [0.375, 0.5, 0.625, 1.0]]


def _clip(item, times, size=32):
    encoded = encode_clip(
        item.path,
        times,
        decoder="pyav",
        size=size,
        resize_filter="bilinear",
        image_format="png",
        jpeg_quality=90,
        annotations=str(item.annotations),
    )
    with np.load(io.BytesIO(encoded.annotations)) as archive:
        return encoded, dict(archive)


def test_a_clip_has_the_boxes_and_points_of_the_frames_that_were_sampled(tmp_path):
    (tmp_path / "videos" / "valid").mkdir(parents=True)
    write_h264(tmp_path / "videos/valid/video_1.mp4", numbered_frames(NUM_FRAMES, height=HEIGHT, width=WIDTH), fps=FPS)
    # A point moves right by 0.005 of the width per frame; it is hidden in frames 20 to 39.
    seen = [frame for frame in range(NUM_FRAMES) if not 20 <= frame < 40]
    points = [[0.25] * len(seen), [0.3 + 0.005 * frame for frame in seen]]
    hidden = _box_track(1, MOVING, is_masked=[0, 1, 0])
    entry = _entry(boxes=[_box_track(0, MOVING), hidden], points=[_point_track(0, points, seen)])
    items = _adapt(tmp_path, {"all_valid.json": [entry]})
    write_manifest(tmp_path / "manifest.csv", items)
    (item,), rejects = read_manifest(tmp_path / "manifest.csv")
    assert rejects == []
    assert (item.split, item.path) == ("val", tmp_path / "videos/valid/video_1.mp4")

    frames = [0, 10, 25, 30, 60]
    encoded, truth = _clip(item, [frame / FPS + 0.01 for frame in frames])
    # Blocks of the whole width spell the number; the crop keeps the middle half, so bits 2 to 5.
    pixels = [np.asarray(decompress(image)) for image in encoded.images]
    shown = [np.tile(picture, (1, 2, 1)) for picture in pixels]
    assert [read_number(picture) & 15 for picture in shown] == [frame >> 2 & 15 for frame in frames]
    # The video is twice as wide as high: a fraction u of the width lies at (u - 1/4) * 2 of the crop.
    wanted = np.array([[0, 0, 0.5, 0.5], [0.5, 0.25, 1, 0.75], [0.25, 0.5, 0.75, 1]])
    np.testing.assert_allclose(truth["boxes"][0, [0, 3, 4]], wanted, atol=1e-6)
    np.testing.assert_array_equal(truth["boxes_visible"], np.array([[1, 0, 0, 1, 1], [1, 0, 0, 0, 1]], bool))
    np.testing.assert_array_equal(truth["points_visible"], np.array([[1, 1, 0, 0, 1]], bool))
    # The crop is half as wide as the frame, so that 0.005 becomes 0.01; single precision.
    wanted = np.array([[0.1 + 0.01 * frame, 0.25] for frame in (0, 10, 60)])
    np.testing.assert_allclose(truth["points"][0, [0, 1, 4]], wanted, atol=1e-6)
    np.testing.assert_array_equal(truth["query_frames"], [0])


def test_boxes_between_two_drawn_ones_can_be_interpolated(tmp_path):
    """Frame 45 lies halfway between the boxes of 30 and 60; nothing is filled in around a hidden one."""
    tracks = [_box_track(0, MOVING), _box_track(1, MOVING, is_masked=[0, 0, 1])]
    (item,) = _adapt(tmp_path, {"all_train.json": [_entry(boxes=tracks)]}, box_gap_seconds=1.0)
    arrays = _load(item.annotations)
    np.testing.assert_allclose(arrays["boxes"][0, 45], np.mean(MOVING[1:], axis=0), atol=1e-6)
    np.testing.assert_allclose(arrays["boxes"][0, [0, 30, 60]], MOVING, atol=0)
    assert arrays["boxes_visible"][0].all()
    np.testing.assert_array_equal(arrays["boxes_visible"][1], np.arange(NUM_FRAMES) <= 30)
    (item,) = _adapt(tmp_path, {}, box_gap_seconds=0.9)
    assert _load(item.annotations)["boxes_visible"].sum() == 5


def test_a_video_without_tracks_is_an_item_without_annotations(tmp_path):
    entries = [_entry("video_1", split="test"), _entry("video_2", split="train", boxes=[_box_track(0, MOVING)])]
    items = _adapt(tmp_path, {"a.json": entries}, tracks=tmp_path / "truth")
    assert [(item.path.name, item.split, item.label) for item in items] == [
        ("video_1.mp4", "test", ""),
        ("video_2.mp4", "train", ""),
    ]
    assert [item.annotations for item in items] == [None, tmp_path / "truth" / "video_2.npz"]
    # A clip of it holds as many arrays as one of a video whose points are annotated.
    assert _load(items[1].annotations)["points"].shape == (0, NUM_FRAMES, 2)
    assert [path.name for path in (tmp_path / "truth").iterdir()] == ["video_2.npz"]


def test_a_video_named_by_a_file_per_task_is_one_row_with_the_tracks_of_both(tmp_path):
    points = _entry(points=[_point_track(0, [[0.5, 0.5], [0.25, 0.75]], [0, 1])])
    del points["object_tracking"]
    files = {
        "object_tracking_valid.json": [_entry(boxes=[_box_track(0, MOVING)])],
        "point_tracking_valid.json": [points],
    }
    (item,) = _adapt(tmp_path, files)
    arrays = _load(item.annotations)
    assert arrays["boxes_visible"].sum() == 3
    np.testing.assert_allclose(arrays["points"][0, :2], [[0.25, 0.5], [0.75, 0.5]], atol=0)


def test_points_are_also_understood_in_rows_as_the_readme_writes_them(tmp_path):
    rows = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    entry = _entry(points=[_point_track(0, rows, [2, 0, 1]), _point_track(1, np.transpose(rows).tolist(), [2, 0, 1])])
    (item,) = _adapt(tmp_path, {"a.json": [entry]})
    points = _load(item.annotations)["points"][:, :3]
    np.testing.assert_allclose(points[0], [[0.4, 0.3], [0.6, 0.5], [0.2, 0.1]], atol=1e-7)
    np.testing.assert_array_equal(points[0], points[1])


def test_a_track_that_is_nowhere_annotated_is_never_visible(tmp_path):
    entry = _entry(boxes=[_box_track(0, [], ())], points=[_point_track(0, [[], []], ())])
    (item,) = _adapt(tmp_path, {"a.json": [entry]})
    arrays = _load(item.annotations)
    assert arrays["boxes"].shape == (1, NUM_FRAMES, 4)
    assert not arrays["boxes_visible"].any()
    assert not arrays["points_visible"].any()


def test_a_file_of_the_same_annotations_is_left_alone_so_that_it_is_not_scanned_again(tmp_path):
    files = {"a.json": [_entry(boxes=[_box_track(0, MOVING)])]}
    (item,) = _adapt(tmp_path, files)
    before = item.annotations.stat()
    assert _adapt(tmp_path, files)[0].annotations.stat() == before
    assert [path.name for path in item.annotations.parent.iterdir()] == [item.annotations.name]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (_entry(boxes=[_box_track(7, MOVING[:2])]), r"video_1: .*track 7 has bounding_boxes of shape \(2, 4\)"),
        (_entry(boxes=[_box_track(7, MOVING, (0, 30, 61))]), "track 7 is in frames 0 to 61 of a video of 61"),
        (_entry(boxes=[_box_track(7, MOVING, (0, 30, 30))]), "wanted different whole numbers"),
        (_entry(boxes=[_box_track(7, MOVING, (0, 1.5, 3))]), "wanted different whole numbers"),
        (_entry(boxes=[_box_track(7, MOVING, is_masked=[1])]), "has 1 is_masked, wanted 3"),
        (_entry(boxes=[_box_track(7, [*MOVING[:2], [0, 0, float("nan"), 1]])]), "finite"),
        (_entry(boxes=[_box_track(7, [*MOVING[:2], [0, 0, 1]])]), "not in its published format"),
        (_entry(points=[{"id": 0, "points": [[0], [0]]}]), "'frame_ids' is missing"),
        (_entry(points=[_point_track(3, [[0.5], [0.5], [0.5]], [0])]), r"track 3 has points of shape \(3, 1\)"),
        (_entry(points=["no track"]), "not in its published format"),
        (_entry(boxes=[_box_track(0, MOVING)], frame_rate=0), "61 frames at 0.0 per second"),
        (_entry(boxes=[_box_track(0, MOVING)], frame_rate=float("inf")), "61 frames at inf per second"),
        (_entry(boxes=[_box_track(0, MOVING)], num_frames=10**12), "got 1000000000000 frames"),
        (_entry(boxes=[_box_track(0, MOVING)], num_frames=float("inf")), "not in its published format"),
        (_entry(boxes=[_box_track(7, [*MOVING[:2], [0, 0, 1e300, 1]])]), "finite"),
        (_entry(split="dev"), "'dev' is missing"),
        (_entry("../video_1"), "'../video_1'"),
        (_entry() | {"metadata": {"video_id": "video_1"}}, "'split' is missing"),
    ],
)
def test_a_malformed_entry_is_named_with_the_reason(tmp_path, entry, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        _adapt(tmp_path, {"all_valid.json": [entry]})
    assert "all_valid.json" in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{nonsense", "[" * 100_000, '{"video_1": 3}', '{"video_1": {}}'])
def test_another_json_is_no_annotation_file(tmp_path, content):
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "other.json").write_text(content)
    with pytest.raises(ConfigError, match=r"other\.json.*not in its published format"):
        _adapt(tmp_path, {})
