"""Static patches over time: EVS, run lengths, DyCoke."""

import pytest
import torch
from token_reduction import unmerge

from vidflow.errors import VidflowError
from vidflow.models.reduction.static_patches import (
    InputStatic,
    PostDycoke,
    PostStatic,
    StaticSelection,
    changed_since_kept,
    patch_pixels,
)

CLIPS = torch.randn(3, 5, 4, 4, 8, generator=torch.Generator().manual_seed(0))


def kept_set(prune: float, tokens: torch.Tensor = CLIPS) -> torch.Tensor:
    return StaticSelection(prune=prune).kept(tokens.flatten(2, 3), kind="cosine")


@pytest.mark.parametrize("prune", [0.0, 0.3, 0.5, 0.75, 0.95])
def test_the_budget_is_kept_and_the_first_frame_stays_whole(prune: float) -> None:
    kept = kept_set(prune)
    assert kept[:, 0].all()
    assert (kept.flatten(1).sum(1) == max(16, int(80 * (1 - prune)))).all()


def test_what_a_smaller_budget_keeps_a_larger_one_keeps_too() -> None:
    previous = kept_set(0.9)
    for prune in (0.6, 0.4, 0.1):
        kept = kept_set(prune)
        assert (kept | ~previous).all()
        previous = kept


def test_a_static_clip_comes_down_to_one_frame_and_is_restored_exactly() -> None:
    tokens = CLIPS[:1, :1].expand(-1, 6, -1, -1, -1)
    step = PostStatic(selection=StaticSelection(threshold=1e-5)).assign(tokens)
    merged, sizes = step.merge(tokens.flatten(1, 3), torch.ones(1, 96))
    assert step.num_rows == 16
    assert sizes.tolist() == [[6.0] * 16]
    assert torch.equal(unmerge(merged, step.row_of), tokens.flatten(1, 3))


def test_dropped_patches_belong_to_the_last_one_kept_at_their_place() -> None:
    step = PostStatic(selection=StaticSelection(prune=0.5)).assign(CLIPS)
    kept = kept_set(0.5)
    owners = step.owners.gather(1, step.row_of).view(3, 5, 16)
    for clip in range(3):
        for place in range(16):
            last = 0
            for frame in range(5):
                last = frame if kept[clip, frame, place] else last
                assert owners[clip, frame, place] == last * 16 + place


def test_slow_drift_is_seen_against_the_last_kept_patch_only() -> None:
    drift = torch.linspace(0, 1, 11).view(1, 11, 1, 1).expand(-1, -1, 2, 3)
    previous = StaticSelection(threshold=0.25).kept(drift, kind="l1")
    assert previous[:, 1:].sum() == 0
    assert changed_since_kept(drift, threshold=0.25, kind="l1")[0, :, 0].nonzero().flatten().tolist() == [0, 3, 6, 9]


def test_pixels_are_cut_into_patches_in_raster_order() -> None:
    frames = torch.arange(4 * 6 * 3, dtype=torch.uint8).view(1, 1, 4, 6, 3)
    patches = patch_pixels(frames, 2)
    assert patches.shape == (1, 1, 6, 12)
    assert torch.equal(patches[0, 0, 4], frames[0, 0, 2:4, 2:4].flatten().float() / 255)


def test_only_the_patch_that_moves_is_encoded_again() -> None:
    frames = torch.full((1, 3, 4, 4, 3), 100, dtype=torch.uint8)
    frames[0, 1, :2, 2:] = 200
    frames[0, 2] = frames[0, 1]
    kept = InputStatic(selection=StaticSelection(threshold=0.1)).kept(frames, patch_size=2)
    assert kept[0].tolist() == [[True] * 4, [False, True, False, False], [False] * 4]


def test_dycoke_keeps_the_published_share_of_a_window() -> None:
    tokens = torch.randn(2, 8, 5, 4, 8)
    step = PostDycoke(prune=0.7).assign(tokens)
    # N(1 + 3(1 - k)) per window of four frames.
    assert step.num_rows == 2 * 20 + 2 * 3 * 6
    _, sizes = step.merge(tokens.flatten(1, 3), torch.ones(2, 160))
    assert torch.equal(sizes.sum(1), torch.tensor([160.0, 160.0]))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 7, 8])
def test_dycoke_equals_its_description_frame_by_frame(num_frames: int) -> None:
    tokens = torch.randn(1, num_frames, 3, 3, 6)
    values = tokens[0].flatten(1, 2)
    step = PostDycoke(prune=0.5).assign(tokens)
    owners = step.owners.gather(1, step.row_of).view(num_frames, 9)
    wanted = torch.arange(num_frames * 9).view(num_frames, 9)
    for frame in sorted(range(num_frames), key=lambda index: (index % 4 != 2, index)):
        source = frame - {0: 0, 1: 1, 2: 2, 3: 1}[frame % 4]
        if source != frame:
            likest = torch.cosine_similarity(values[frame], values[source], dim=-1).argsort(descending=True)[:4]
            wanted[frame, likest] = wanted[source, likest]
    assert torch.equal(owners, wanted)


@pytest.mark.parametrize(
    "settings",
    [{}, {"prune": 0.5, "threshold": 0.1}, {"prune": 1.0}, {"prune": 0.5, "reference": "last_kept"}],
)
def test_settings_that_contradict_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(VidflowError, match="evs"):
        StaticSelection(**settings)  # type: ignore[arg-type]
