import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from vidflow.video.ffmpeg import decode, probe
from vidflow.video.synthetic import CLASS_NAMES, list_videos, render_video, reverse_of, video_path, write_video

SETTINGS = {"size": 48, "num_frames": 8, "fps": 12, "difficulty": 0.6}
TIME_SYMMETRIC = ("boxes", "boxes_visible", "depth", "camera_pose")


@pytest.mark.parametrize("label", CLASS_NAMES)
def test_a_clip_played_backwards_is_its_partners_clip(label):
    one = render_video(label=label, seed=7, **SETTINGS)
    other = render_video(label=reverse_of(label), seed=7, **SETTINGS)
    np.testing.assert_array_equal(one.frames, other.frames[::-1])
    for name in TIME_SYMMETRIC:
        flipped = other.annotations[name]
        axis = 1 if name.startswith("boxes") else 0
        np.testing.assert_array_equal(one.annotations[name], np.flip(flipped, axis))


def test_a_model_blind_to_order_is_right_for_exactly_one_of_each_pair():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(48 * 48 * 3, len(CLASS_NAMES)))
    right = []
    for seed in range(3):
        for label in CLASS_NAMES[::2]:
            answers = {}
            for name in (label, reverse_of(label)):
                frames = render_video(label=name, seed=seed, annotations=False, **SETTINGS).frames
                # Integer sums: the same to the last bit in whatever order.
                logits = frames.reshape(len(frames), -1).sum(axis=0, dtype=np.int64) @ weights
                pair = [CLASS_NAMES.index(label), CLASS_NAMES.index(reverse_of(label))]
                answers[name] = CLASS_NAMES[pair[int(logits[pair].argmax())]]
            right.append(sum(name == answer for name, answer in answers.items()))
    assert right == [1] * 15


def name_pair_without_order(boxes, visible):
    """Name the pair from where the target is seen, in no order."""
    if visible.mean() < 0.9:
        return "enter"
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=-1)
    across, along = np.ptp(centre, axis=0)
    if side.max() > 1.7 * side.min():
        return "grow"
    if min(across, along) > 0.5 * max(across, along):
        return "clockwise"
    return "move_left" if across > along else "move_up"


def test_the_pairs_can_be_told_apart_without_order():
    right = [
        name_pair_without_order(truth["boxes"][0], truth["boxes_visible"][0]) == label
        for label in CLASS_NAMES[::2]
        for seed in range(8)
        for truth in [render_video(label=label, seed=seed, **SETTINGS | {"difficulty": 0.2}).annotations]
    ]
    # The rule is crude (a clipped box looks smaller); guessing would be right for 1 in 5.
    assert np.mean(right) > 0.9


def test_the_same_seed_gives_the_same_video_and_another_seed_another():
    one, same, other = (render_video(label="grow", seed=seed, **SETTINGS) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.frames, same.frames)
    np.testing.assert_array_equal(one.annotations["points"], same.annotations["points"])
    assert (one.frames != other.frames).mean() > 0.5


def test_annotations_are_optional_and_do_not_change_the_frames():
    bare = render_video(label="enter", seed=3, annotations=False, **SETTINGS)
    assert bare.annotations == {}
    np.testing.assert_array_equal(bare.frames, render_video(label="enter", seed=3, **SETTINGS).frames)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 47}, "size=47"),
        ({"num_frames": 1}, "num_frames=1"),
        ({"fps": 0}, "fps=0"),
        ({"difficulty": 1.5}, "difficulty=1.5"),
        ({"camera_travel": -1.0}, "camera_travel=-1.0"),
        ({"camera_turn": 16.0}, "camera_turn=16.0"),
        ({"label": "fly"}, "'fly' is not a rendered class"),
    ],
)
def test_a_setting_out_of_range_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        render_video(**{"label": "grow", "seed": 0} | SETTINGS | wrong)


def test_a_plan_is_balanced_and_no_two_videos_share_a_seed():
    plan = list_videos(num_train=60, num_val=20, seed=3)
    assert [sum(video.split == split for video in plan) for split in ("train", "val")] == [60, 20]
    for split, each in (("train", 6), ("val", 2)):
        labels = [video.label for video in plan if video.split == split]
        assert {labels.count(name) for name in CLASS_NAMES} == {each}
    others = list_videos(num_train=60, num_val=20, seed=4)
    assert len({video.seed for video in plan + others}) == 160


def test_a_larger_plan_begins_with_the_smaller_ones_videos():
    small, large = list_videos(num_train=5, num_val=3, seed=0), list_videos(num_train=50, num_val=30, seed=0)
    assert all(video in large for video in small)


def test_a_negative_number_of_videos_is_refused():
    with pytest.raises(ValueError, match="num_val=-1"):
        list_videos(num_train=1, num_val=-1, seed=0)


def test_a_written_video_is_h264_with_the_annotated_moments_and_nearly_the_rendered_pixels(tmp_path):
    (spec,) = list_videos(num_train=1, num_val=0, seed=0)
    settings = SETTINGS | {"fps": Fraction(30000, 1001)}
    item = write_video(tmp_path, spec, annotations=True, **settings)
    assert item.path == video_path(tmp_path, spec)
    assert item.path.is_absolute()
    assert (item.label, item.split) == (spec.label, "train")
    info = probe(item.path)
    assert (info.codec, info.pixel_format, info.width, info.height) == ("h264", "yuv420p", 48, 48)
    rendered = render_video(label=spec.label, seed=spec.seed, **settings)
    with np.load(item.annotations, allow_pickle=False) as stored:
        assert set(stored) == set(rendered.annotations)
        for name, array in rendered.annotations.items():
            np.testing.assert_array_equal(stored[name], array)
        # MP4 keeps ticks of the frame rate: the moments are the same to rounding.
        np.testing.assert_allclose(info.pts_seconds, stored["pts_seconds"], atol=1e-6)
    decoded = np.stack([frame for _, frame in decode(item.path, info, range(8))])
    error = decoded.astype(int) - rendered.frames
    # x264 at crf 18 on small sharp pictures, chroma at half resolution: a few grey levels.
    assert np.abs(error).mean() < 6
    between_frames = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(rendered.frames)]
    assert np.abs(error).mean() < np.mean(between_frames)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    (spec,) = list_videos(num_train=0, num_val=1, seed=0)
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        item = write_video(tmp_path / name, spec, annotations=True, **SETTINGS)
        written.append((item.path.read_bytes(), item.annotations.read_bytes()))
    assert written[0] == written[1]


def test_bytes_do_not_depend_on_what_lies_in_memory(tmp_path):
    # glibc fills memory that is taken or given back with a byte of our choice: whoever reads before writing shows it.
    script = (
        "import sys; from pathlib import Path; from vidflow.video.synthetic import list_videos, write_video\n"
        "for spec in list_videos(num_train=4, num_val=0, seed=0):\n"
        "    write_video(Path(sys.argv[1]), spec, size=96, num_frames=24, fps=12, difficulty=0.3)"
    )
    written = []
    for fill in (85, 170):
        folder = tmp_path / str(fill)
        folder.mkdir()
        environment = {**os.environ, "MALLOC_PERTURB_": str(fill)}
        subprocess.run([sys.executable, "-c", script, folder], env=environment, check=True)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]


def test_without_annotations_only_the_video_is_written(tmp_path):
    (spec,) = list_videos(num_train=1, num_val=0, seed=0)
    item = write_video(tmp_path, spec, **SETTINGS)
    assert item.annotations is None
    assert list(tmp_path.iterdir()) == [item.path]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (spec,) = list_videos(num_train=1, num_val=0, seed=0)
    occupied = video_path(tmp_path, spec)
    occupied.mkdir()
    with pytest.raises(IsADirectoryError):
        write_video(tmp_path, spec, **SETTINGS)
    assert list(tmp_path.iterdir()) == [occupied]
