"""ALGM: local windows by a threshold, counts per sample."""

import pytest
import torch
from shapes import vit_shape
from token_reduction import unmerge

from vidflow.errors import VidflowError
from vidflow.models.reduction.windows import (
    BlockWindows,
    PostWindows,
    calibrated_threshold,
    merge_windows,
    window_members,
    window_similarity,
)

CPU = torch.device("cpu")


def test_windows_cover_the_grid_in_raster_order_but_not_its_odd_edge() -> None:
    assert window_members((1, 4, 4), (1, 2, 2), CPU).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert window_members((1, 3, 3), (1, 2, 2), CPU).tolist() == [[0, 1, 3, 4]]
    assert window_members((2, 1, 2), (2, 1, 1), CPU).tolist() == [[0, 2], [1, 3]]


def test_similarity_is_the_mean_over_pairs() -> None:
    tokens = torch.randn(2, 16, 8)
    members = window_members((1, 4, 4), (1, 2, 2), CPU)
    similarity = window_similarity(tokens, members)
    for sample in range(2):
        for window, inside in enumerate(members.tolist()):
            pairs = [
                torch.cosine_similarity(tokens[sample, a], tokens[sample, b], dim=0)
                for a in inside
                for b in inside
                if a != b
            ]
            # float32; the closed form subtracts m from a sum of about m.
            torch.testing.assert_close(similarity[sample, window], torch.stack(pairs).mean(), atol=1e-5, rtol=0)


def test_constant_windows_have_similarity_one_and_merge_without_loss() -> None:
    tokens = torch.randn(1, 1, 2, 2, 8).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    step = PostWindows(threshold=0.9999).assign(tokens)
    merged, sizes = step.merge(tokens.flatten(1, 3), torch.ones(1, 16))
    assert sizes.tolist() == [[4.0] * 4]
    torch.testing.assert_close(unmerge(merged, step.row_of), tokens.flatten(1, 3))


def test_rows_are_merged_windows_by_similarity_then_the_rest_in_raster_order() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.95, 0.2], [0.1, 0.1, 0.1, 0.99]])
    step = merge_windows(similarity, window_members((1, 4, 4), (1, 2, 2), CPU), 16, threshold=0.88)
    assert step.counts is not None
    assert step.counts.tolist() == [10, 13]
    assert step.row_of[0].tolist() == [1, 1, 2, 3, 1, 1, 4, 5, 0, 0, 6, 7, 0, 0, 8, 9]
    assert step.row_of[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 11, 12, 0, 0]
    assert step.owners[0].tolist() == [8, 0, 2, 3, 6, 7, 10, 11, 14, 15, 16, 16, 16]


def test_counts_do_not_depend_on_the_batch() -> None:
    tokens = torch.randn(4, 2, 4, 4, 3)
    reducer = PostWindows(threshold=0.0, window=(2, 2, 2))
    whole = reducer.assign(tokens)
    assert whole.counts is not None
    assert len(whole.counts.unique()) > 1
    for sample in range(4):
        alone = reducer.assign(tokens[sample : sample + 1])
        assert torch.equal(alone.row_of[0], whole.row_of[sample])
        assert alone.num_rows == whole.counts[sample]


def test_an_unreachable_threshold_leaves_everything() -> None:
    tokens = torch.randn(1, 1, 4, 4, 8)
    step = PostWindows(threshold=1.1).assign(tokens)
    assert torch.equal(step.merge(tokens.flatten(1, 3), torch.ones(1, 16))[0], tokens.flatten(1, 3))


def test_thresholds_are_calibrated_from_a_sample() -> None:
    sample = torch.linspace(0, 1, 1001)
    assert calibrated_threshold(sample, fraction=0.25) == pytest.approx(0.75, abs=1e-6)
    # Mean 0.5 and standard deviation 1 / sqrt(12) of a uniform sample, finite-size correction below 1e-3.
    assert calibrated_threshold(sample, sigmas=1.0) == pytest.approx(0.5 + 12**-0.5, abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"global_threshold": 0.9, "global_block": 12},
        {"global_threshold": 0.9, "local_block": 4},
        {"local_block": 12},
        {"local_block": -1},
        {"window": 9},
        {"window": 1},
    ],
)
def test_blocks_and_windows_that_do_not_fit_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(VidflowError, match="algm"):
        BlockWindows(**settings).check(vit_shape(depth=12, side=8), num_frames=1)  # type: ignore[arg-type]


def test_a_second_block_that_is_left_out_need_not_exist() -> None:
    BlockWindows(local_block=2, global_block=1).check(vit_shape(depth=3, side=8), num_frames=1)


def test_a_window_that_is_larger_than_the_clip_is_refused() -> None:
    with pytest.raises(VidflowError, match=r"window \[1, 2, 2\]; wanted at most \[3, 4, 1\]"):
        PostWindows().assign(torch.randn(1, 3, 4, 1, 8))
