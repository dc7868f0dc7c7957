import dataclasses
import resource
import threading
import weakref

import numpy as np
import pytest
import torch

from vidflow.errors import VidflowError
from vidflow.store.features import FeatureReader
from vidflow.training.batches import iterate_batches, needs_thread, read_annotations

CPU = torch.device("cpu")
ALL_ARRAYS = ("boxes", "boxes_visible", "points", "points_visible", "query_frames", "depth", "camera_motion")


def test_batches_hold_every_clip_once_in_the_order_asked_for(noise_features):
    order = np.random.default_rng(0).permutation(len(noise_features))
    batches = list(iterate_batches(noise_features, order, batch_size=7, device=CPU))
    assert [len(batch.tokens) for batch in batches] == [7, 7, 7, 7, 7, 1]
    np.testing.assert_array_equal(np.concatenate([batch.indices for batch in batches]), order)


def test_a_batch_equals_its_clips_read_one_by_one(noise_features):
    indices = np.array([5, 30, 2])
    (batch,) = iterate_batches(noise_features, indices, batch_size=3, device=CPU)
    for row, index in enumerate(indices):
        clip = noise_features[int(index)]
        for frame in range(3):
            for token in range(4):
                stored = clip.tokens[frame * 4 + token]
                np.testing.assert_array_equal(batch.tokens[row, frame, 0, token].numpy(), stored)
        np.testing.assert_array_equal(batch.prefix[row].numpy(), clip.prefix)
        assert batch.targets["label"][row] == clip.label
    assert batch.tokens.dtype == batch.prefix.dtype == torch.float16


def test_files_a_set_is_split_into_change_nothing(tmp_path, feature_set):
    tokens = np.random.default_rng(0).normal(size=(6, 2, 2, 3, 8))
    one = feature_set(tmp_path / "one", tokens, [0] * 6, ["train"] * 6)
    many = feature_set(tmp_path / "many", tokens, [0] * 6, ["train"] * 6, file_sizes=[1, 3, 2])
    (first,), (second,) = (list(iterate_batches(r, np.arange(6), batch_size=6, device=CPU)) for r in (one, many))
    assert torch.equal(first.tokens, second.tokens)


def test_features_without_prefix_tokens_give_no_prefix(annotated_features):
    (batch,) = iterate_batches(annotated_features, np.arange(2), batch_size=2, device=CPU)
    assert batch.prefix is None


def test_fewer_depths_are_the_last_ones(tmp_path, feature_set):
    tokens = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 8))
    reader = feature_set(tmp_path, tokens, [0, 0], ["train"] * 2)
    (every,) = iterate_batches(reader, np.arange(2), batch_size=2, device=CPU)
    (last,) = iterate_batches(reader, np.arange(2), batch_size=2, device=CPU, num_depths=1)
    assert every.tokens.shape == (2, 2, 3, 4, 8)
    assert torch.equal(last.tokens, every.tokens[:, :, 2:])


def test_annotations_become_targets_and_missing_objects_are_not_visible(annotated_features):
    indices = np.array([0, 2, 1])
    (batch,) = iterate_batches(annotated_features, indices, batch_size=3, device=CPU, arrays=ALL_ARRAYS)
    targets = batch.targets
    assert targets["boxes"].shape == (3, 3, 3, 4)
    assert targets["points"].shape == (3, 3, 3, 2)
    assert targets["depth"].shape == (3, 3, 16, 16)
    assert targets["camera_motion"].shape == (3, 3, 9)
    assert targets["boxes_visible"].dtype == torch.bool
    assert targets["query_frames"].dtype == torch.int64
    for row, index in enumerate(indices):
        truth = read_annotations(annotated_features[int(index)], ALL_ARRAYS)
        for name in ALL_ARRAYS:
            np.testing.assert_array_equal(targets[name][row, : len(truth[name])].numpy(), truth[name])
            assert not targets[name][row, len(truth[name]) :].any()


def test_clips_without_any_object_still_have_a_place_for_one(tmp_path, feature_set):
    empty = {"boxes": np.zeros((0, 2, 4), np.float32), "boxes_visible": np.zeros((0, 2), bool)}
    tokens = np.zeros((1, 2, 1, 3, 8))
    reader = feature_set(tmp_path, tokens, [-1], ["train"], annotations=[empty])
    (batch,) = iterate_batches(reader, np.arange(1), batch_size=1, device=CPU, arrays=tuple(empty))
    assert batch.targets["boxes"].shape == (1, 1, 2, 4)
    assert not batch.targets["boxes_visible"].any()


def _has_reading_thread():
    return any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_the_reading_thread_ends_when_the_caller_stops_early(annotated_features):
    batches = iterate_batches(annotated_features, np.arange(2), batch_size=1, device=CPU, arrays=("boxes",))
    next(batches)
    assert _has_reading_thread()
    batches.close()
    assert not _has_reading_thread()


def test_a_thread_reads_annotations_and_what_a_gpu_gets_in_large_batches():
    cuda = torch.device("cuda")
    assert needs_thread(CPU, 0, ["boxes"])
    assert needs_thread(cuda, 1 << 24, ())
    assert not needs_thread(cuda, (1 << 24) - 1, ())
    assert not needs_thread(CPU, 1 << 30, ())


def test_large_batches_of_a_plain_loop_take_no_new_memory(tmp_path, feature_set):
    # 4 MB a clip: more than glibc keeps for the next caller by default.
    reader = feature_set(tmp_path, np.ones((8, 4, 1, 8192, 64)), [0] * 8, ["train"] * 8)
    order = np.tile(np.arange(8), 2)

    def read() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for batch in iterate_batches(reader, order, batch_size=4, device=CPU):
            assert batch.tokens[3, 3, 0, 8191, 63] == 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    read()
    # Four batches of 4096 pages each, or of 8 huge ones.
    assert min(read() for _ in range(3)) < 8


def test_a_batch_that_is_kept_stays_as_it_is_while_others_are_read(noise_features):
    order = np.arange(36)
    kept = [
        (batch.tokens[:1], batch.prefix) for batch in iterate_batches(noise_features, order, batch_size=6, device=CPU)
    ]
    for _ in iterate_batches(noise_features, order[::-1].copy(), batch_size=6, device=CPU):
        pass
    for start, (tokens, prefix) in zip(range(0, 36, 6), kept, strict=True):
        np.testing.assert_array_equal(tokens[0].reshape(-1, 16), noise_features[start].tokens)
        np.testing.assert_array_equal(prefix[5], noise_features[start + 5].prefix)


def test_the_memory_of_batches_goes_with_their_reader(tmp_path, feature_set):
    reader = feature_set(tmp_path, np.ones((2, 2, 1, 3, 8)), [0] * 2, ["train"] * 2)
    (batch,) = iterate_batches(reader, np.arange(2), batch_size=2, device=CPU)
    gone = weakref.ref(reader)
    del reader
    assert gone() is None
    assert (batch.tokens == 1).all()


def test_missing_annotations_are_named(noise_features, annotated_features):
    with pytest.raises(VidflowError, match=r"clip clip000: no annotations, wanted depth"):
        list(iterate_batches(noise_features, np.arange(2), batch_size=2, device=CPU, arrays=("depth",)))
    with pytest.raises(VidflowError, match=r"clip clip000: its annotations hold .*boxes.*; missing: masks"):
        read_annotations(annotated_features[0], ["masks"])


def test_clips_of_different_size_in_one_batch_are_refused(tmp_path, feature_set):
    reader = feature_set(tmp_path / "a", np.zeros((2, 2, 1, 3, 8)), [0, 0], ["train"] * 2)
    other = feature_set(tmp_path / "b", np.zeros((2, 2, 1, 5, 8)), [0, 0], ["train"] * 2)
    mixed = _Chosen([reader[0], other[1]])
    with pytest.raises(VidflowError, match=r"clip clip001: tokens of shape \(2, 1, 5, 8\), but \(2, 1, 3, 8\)"):
        list(iterate_batches(mixed, np.arange(2), batch_size=2, device=CPU))


def test_ragged_token_counts_are_refused_with_the_counts(noise_features):
    clip = noise_features[0]
    counts = clip.counts.copy()
    counts[1] = 2
    ragged = dataclasses.replace(clip, counts=counts, tokens=clip.tokens[: counts.sum()])
    with pytest.raises(VidflowError, match="clip clip000: 2 to 4 tokens per frame"):
        list(iterate_batches(_Chosen([ragged]), np.arange(1), batch_size=1, device=CPU))


def test_reduced_tokens_come_as_stored_where_they_are_wanted_so(noise_features):
    clip = noise_features[0]
    num_frames, num_depths = clip.counts.shape
    num_patches = int(clip.counts[0, 0])
    # Patches 0 and 1 of every frame and depth share a token.
    kept = clip.tokens.reshape(num_frames, num_depths, num_patches, -1)[:, :, 1:]
    owners = np.maximum(np.arange(num_patches) - 1, 0)
    firsts = (num_patches - 1) * np.arange(num_frames)[:, None, None]
    reduced = dataclasses.replace(
        clip,
        tokens=kept.reshape(-1, kept.shape[-1]),
        counts=clip.counts - 1,
        assignment=np.broadcast_to(owners + firsts * num_depths, (num_frames, num_depths, num_patches)),
    )
    for unmerged, expected in ((True, kept[:, :, owners]), (False, kept)):
        (batch,) = iterate_batches(_Chosen([reduced]), np.arange(1), batch_size=1, device=CPU, unmerged=unmerged)
        assert torch.equal(batch.tokens[0], torch.from_numpy(expected.copy()))


class _Chosen(FeatureReader):
    """Clips by hand, where a reader is wanted: what no finished feature set holds."""

    def __init__(self, clips):
        self._clips = clips

    def __getitem__(self, index):
        return self._clips[index]
