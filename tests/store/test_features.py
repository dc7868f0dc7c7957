from pathlib import Path

import numpy as np
import pytest

from vidflow.errors import VidflowError
from vidflow.files import file_sha256
from vidflow.records import ClipTokens
from vidflow.store.features import FeatureFile, FeatureReader, clip_order, write_features


def make_clip(index: int, *, merged: bool = False, embed_dim: int = 8) -> ClipTokens:
    rng = np.random.default_rng(index)
    counts = rng.integers(1, 9, (4, 2)).astype(np.int32) if merged else np.full((4, 2), 9, np.int32)
    num_tokens = int(counts.sum())
    return ClipTokens(
        key=f"key{index}",
        label=index % 3,
        split="train",
        pts_seconds=np.arange(4) / 8,
        tokens=rng.normal(size=(num_tokens, embed_dim)).astype(np.float16),
        prefix=rng.normal(size=(4, 1, embed_dim)).astype(np.float16),
        counts=counts,
        sizes=rng.integers(1, 5, num_tokens).astype(np.uint16) if merged else None,
        assignment=rng.integers(-1, 9, (4, 2, 9)).astype(np.int16) if merged else None,
        annotations=b"npz" if merged else b"",
    )


def open_file(path: Path) -> FeatureFile:
    return FeatureFile(path, file_sha256(path))


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_written_is_read_back_exactly(tmp_path, merged):
    clips = [make_clip(index, merged=merged) for index in range(3)]
    assert write_features(tmp_path / "a.arrow", clips, {"embed_dim": 8}) == 3
    file = open_file(tmp_path / "a.arrow")
    assert len(file) == 3
    for wanted, got in zip(clips, (file[row] for row in range(3)), strict=True):
        assert bytes(got.annotations) == wanted.annotations
        for name in set(ClipTokens.__slots__) - {"annotations"}:
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


def test_tokens_are_views_of_the_map_and_cannot_be_written(tmp_path):
    write_features(tmp_path / "a.arrow", [make_clip(0)], {"embed_dim": 8})
    clip = open_file(tmp_path / "a.arrow")[0]
    assert not clip.tokens.flags.owndata
    assert not clip.tokens.flags.writeable


def test_the_bytes_depend_on_the_clips_alone(tmp_path):
    for name in ("a.arrow", "b.arrow"):
        write_features(tmp_path / name, [make_clip(i, merged=i == 1) for i in range(3)], {"embed_dim": 8})
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_an_unfinished_feature_set_is_not_readable(tmp_path):
    with pytest.raises(VidflowError, match="run `vidflow extract`"):
        FeatureReader(tmp_path)


def test_the_order_of_clips_is_a_permutation_that_seed_and_epoch_decide():
    first = clip_order(50, seed=1, epoch=2)
    np.testing.assert_array_equal(first, clip_order(50, seed=1, epoch=2))
    np.testing.assert_array_equal(np.sort(first), np.arange(50))
    assert not np.array_equal(first, clip_order(50, seed=1, epoch=3))
    assert not np.array_equal(first, clip_order(50, seed=2, epoch=2))
