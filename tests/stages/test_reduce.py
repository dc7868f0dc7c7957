import numpy as np
import pytest

from vidflow.errors import DamagedError
from vidflow.files import file_sha256
from vidflow.models.encoder.encoded import number_rows
from vidflow.models.reduction.build import build_reducer
from vidflow.records import ClipTokens
from vidflow.stages.reduce import ReduceUnit, TokenReducer, reduce_clip
from vidflow.store.features import unmerge, write_features

T, K, SIDE, D = 4, 2, 4, 8


def make_clip(key: str = "key") -> ClipTokens:
    rng = np.random.default_rng(0)
    return ClipTokens(
        key=key,
        label=0,
        split="val",
        pts_seconds=np.arange(T) / 8,
        tokens=rng.normal(size=(T * K * SIDE**2, D)).astype(np.float16),
        prefix=np.zeros((T, 1, D), np.float16),
        counts=np.full((T, K), SIDE**2, np.int32),
    )


REDUCERS = [
    ("tome", {"keep": 0.5, "place": "post"}),
    ("random", {"keep": 0.5}),
    ("pool", {"window": [1, 2, 2]}),
    ("dycoke", {}),
    ("sttm", {}),
    ("density_peaks", {"keep": 0.25}),
    ("divprune", {"keep": 0.25}),
    ("fewer_frames", {"stride": 2, "place": "post"}),
]


@pytest.mark.parametrize(("name", "settings"), REDUCERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_patch_gets_the_mean_of_what_its_token_stands_for(name, settings):
    clip = make_clip()
    reducer = build_reducer(name, **settings)
    reduced = reduce_clip(reducer, clip, height=SIDE, width=SIDE)
    dense, restored = unmerge(clip).astype(np.float32), unmerge(reduced).astype(np.float32)
    assert restored.shape == dense.shape
    assert reduced.counts.sum() == len(reduced.tokens) <= len(clip.tokens)
    for depth in range(K):
        patches = dense[:, depth].reshape(-1, D)
        rows = reduced.assignment[:, depth].ravel()
        for row in np.unique(rows[rows >= 0]):
            members = rows == row
            got = restored[:, depth].reshape(-1, D)[members]
            # fp16 keeps three digits; a mean taken before and after rounding differs by as much.
            np.testing.assert_allclose(got, np.broadcast_to(got[0], got.shape))
            low, high = patches[members].min(axis=0) - 4e-3, patches[members].max(axis=0) + 4e-3
            assert ((got[0] >= low) & (got[0] <= high)).all()


def test_sizes_sum_to_the_patches_where_none_is_dropped():
    reduced = reduce_clip(build_reducer("tome", keep=0.5, place="post"), make_clip(), height=SIDE, width=SIDE)
    assert reduced.sizes.sum() == T * K * SIDE**2
    assert (reduced.assignment >= 0).all()


def test_the_key_seeds_what_is_random():
    reducer = build_reducer("random", keep=0.5)
    same, again, other = (reduce_clip(reducer, make_clip(k), height=SIDE, width=SIDE) for k in ("a", "a", "b"))
    np.testing.assert_array_equal(same.assignment, again.assignment)
    assert (same.assignment != other.assignment).any()


def test_a_dropped_patch_shows_what_its_place_held_before():
    clip = make_clip()
    reduced = reduce_clip(build_reducer("fewer_frames", stride=2, place="post"), clip, height=SIDE, width=SIDE)
    restored, dense = unmerge(reduced), unmerge(clip)
    np.testing.assert_array_equal(restored, dense[[0, 0, 2, 2]])


def test_rows_are_numbered_through_the_clip():
    assignment = np.array([[[0, 1, 1]], [[0, -1, 0]], [[2, 1, 0]]])
    counts = np.array([[2], [1], [3]])
    np.testing.assert_array_equal(number_rows(assignment, counts), [[[0, 1, 1]], [[2, -1, 2]], [[5, 4, 3]]])


def test_a_reduced_file_says_which_dense_one_it_was_made_from_and_an_altered_one_is_not_read(tmp_path):
    path = tmp_path / "dense.arrow"
    write_features(path, [make_clip()], {"embed_dim": D, "grid": [SIDE, SIDE]})
    unit = ReduceUnit(file="a.arrow", dense=path.name, source_sha256=file_sha256(path))
    reducer = TokenReducer(build_reducer("pool", window=[1, 2, 2]), dense=tmp_path, directory=tmp_path, metadata={})
    assert reducer(unit).details == {"source": unit.source_sha256}
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match=r"dense\.arrow: its bytes are not those that were written"):
        reducer(unit)
