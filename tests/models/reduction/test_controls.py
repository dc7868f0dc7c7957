"""Controls at equal bytes."""

import pytest
import torch
from token_reduction import unmerge

from vidflow.errors import VidflowError
from vidflow.models.reduction.controls import (
    InputFewerFrames,
    InputLowerResolution,
    PostFewerFrames,
    PostPooling,
    PostRandom,
    covering_patches,
)

TOKENS = torch.randn(2, 4, 6, 6, 5, generator=torch.Generator().manual_seed(0))


def merged(step: object) -> torch.Tensor:
    return step.merge(TOKENS.flatten(1, 3), torch.ones(2, 144))[0]  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("window", [(1, 2, 2), (2, 1, 1), (2, 3, 2), (4, 6, 6)])
def test_pooling_equals_torchs(window: tuple[int, int, int]) -> None:
    wanted = torch.nn.functional.avg_pool3d(TOKENS.permute(0, 4, 1, 2, 3), window).flatten(2).transpose(1, 2)
    # Sums of up to 144 float32 numbers in another order.
    torch.testing.assert_close(merged(PostPooling(window=window).assign(TOKENS)), wanted, atol=1e-6, rtol=1e-5)


def test_pooling_keeps_a_remainder_in_smaller_windows() -> None:
    step = PostPooling(window=(3, 4, 4)).assign(TOKENS)
    assert step.num_rows == 2 * 2 * 2
    _, sizes = step.merge(TOKENS.flatten(1, 3), torch.ones(2, 144))
    assert sizes[0].tolist() == [48, 24, 24, 12, 16, 8, 8, 4]


def test_fewer_frames_are_frames_taken_as_they_are_and_repeated() -> None:
    step = PostFewerFrames(stride=3).assign(TOKENS)
    assert torch.equal(merged(step), TOKENS[:, [0, 3]].flatten(1, 3))
    assert torch.equal(unmerge(merged(step), step.row_of), TOKENS[:, [0, 0, 0, 3]].flatten(1, 3))


def test_frames_left_out_before_the_encoder_have_no_patches() -> None:
    kept = InputFewerFrames(stride=2).kept(torch.zeros(1, 5, 4, 4, 3, dtype=torch.uint8), patch_size=2)
    assert kept.shape == (1, 5, 4)
    assert kept.all(2)[0].tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(("keep", "side"), [(1.0, 14), (0.5, 10), (0.25, 7), (0.001, 1)])
def test_a_lower_resolution_is_a_whole_number_of_patches(keep: float, side: int) -> None:
    assert InputLowerResolution(keep=keep).side(14) == side


def test_every_patch_is_covered_by_the_small_patch_over_its_centre() -> None:
    assert covering_patches(4, 2, torch.device("cpu")).view(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert covering_patches(3, 2, torch.device("cpu")).view(3, 3)[0].tolist() == [0, 1, 1]
    assert torch.equal(covering_patches(5, 5, torch.device("cpu")), torch.arange(25))


def test_a_random_choice_follows_the_seed_alone_and_is_uniform() -> None:
    reducer = PostRandom(keep=0.25)
    seeds = torch.arange(400)
    step = reducer.assign(TOKENS[:1].expand(400, -1, -1, -1, -1), seeds=seeds)
    assert step.num_rows == 4 * 9
    assert torch.equal(step.row_of[3:5], reducer.assign(torch.zeros(2, 4, 6, 6, 1), seeds=seeds[3:5]).row_of)
    share = (step.row_of >= 0).float().mean(0)
    # 400 draws of probability 0.25: standard error 0.022; the largest of 144 deviations stays below 4.5 of them.
    assert (share - 0.25).abs().max() < 0.1
    with pytest.raises(ValueError, match="seed"):
        reducer.assign(TOKENS)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (PostPooling, {"window": (0, 1, 1)}),
        (PostFewerFrames, {"stride": 0}),
        (InputFewerFrames, {"stride": 0}),
        (InputLowerResolution, {"keep": 0.0}),
        (PostRandom, {"keep": 1.5}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, settings: dict[str, object]) -> None:
    with pytest.raises(VidflowError, match="wanted"):
        kind(**settings)
