"""Frames of which only some patches are encoded, and the encoder with every reducer before or inside it."""

from typing import Any

import pytest
import torch
from token_reduction import unmerge

from vidflow.errors import VidflowError
from vidflow.models.encoder import FrozenEncoder, build_encoder
from vidflow.models.reduction.build import build_reducer

NAMES = ["vit_tiny_patch16_224", "vit_tiny_patch16_dinov3_qkvb"]
REDUCERS: list[tuple[str, dict[str, Any]]] = [
    ("tome", {"keep": 0.5}),
    ("drop", {"num_merged": 2}),
    ("random_merge", {"num_merged": 2}),
    ("random_drop", {"num_merged": [3, 0, 2]}),
    ("hybrid", {"num_merged": 2, "threshold": 0.4}),
    ("algm", {"local_threshold": 0.6, "global_threshold": 0.6}),
    ("vidtldr", {"num_merged": [4, 2]}),
    ("evs", {"prune": 0.5}),
    ("evs", {"threshold": 0.05}),
    ("fewer_frames", {"stride": 2}),
    ("lower_resolution", {"keep": 0.5}),
]


def build(name: str, reducer: Any = "none", **settings: Any) -> FrozenEncoder:
    reduction = build_reducer(reducer, **settings)
    return build_encoder(name=name, weights="random:0", img_size=80, depths=[2, -1], reduction=reduction)  # type: ignore[arg-type]


def clips() -> torch.Tensor:
    """Make three clips of four frames: one that moves all over, one that moves in a corner, one that stands still."""
    frames = torch.randint(0, 256, (3, 4, 80, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames[1, 1:, 20:] = frames[1, :1, 20:]
    frames[2, 1:] = frames[2, :1]
    return frames


@pytest.mark.parametrize(("reducer", "settings"), REDUCERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_clip_alone_is_encoded_as_in_any_batch(name: str, reducer: str, settings: dict[str, Any]) -> None:
    encoder = build(name, reducer, **settings)
    frames = clips()
    together = encoder(frames.flatten(0, 1), num_frames=4)
    assert together.sizes is not None
    assert together.assignment is not None
    assert together.counts is not None
    for clip in range(3):
        alone = encoder(frames[clip], num_frames=4)
        assert alone.sizes is not None
        assert alone.assignment is not None
        assert alone.counts is not None
        part, length = slice(4 * clip, 4 * clip + 4), alone.tokens.shape[2]
        assert torch.equal(together.counts[part], alone.counts)
        assert torch.equal(together.assignment[part], alone.assignment)
        torch.testing.assert_close(together.sizes[part, :, :length], alone.sizes)
        assert (together.tokens[part, :, length:] == 0).all()
        # Other batch sizes and paddings take other matrix kernels; float32 rounding through twelve blocks.
        torch.testing.assert_close(together.tokens[part, :, :length], alone.tokens, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(together.prefix[part], alone.prefix, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("reducer", "settings"), REDUCERS)
def test_counts_sizes_and_assignment_agree_at_every_depth(reducer: str, settings: dict[str, Any]) -> None:
    encoded = build("vit_tiny_patch16_224", reducer, **settings)(clips().flatten(0, 1), num_frames=4)
    assert encoded.sizes is not None
    assert encoded.assignment is not None
    assert encoded.counts is not None
    for frame in range(12):
        for depth in range(2):
            count = int(encoded.counts[frame, depth])
            rows = encoded.assignment[frame, depth]
            assert torch.equal(rows[rows >= 0].unique(), torch.arange(count))
            assert (encoded.tokens[frame, depth, count:] == 0).all()
            assert (encoded.sizes[frame, depth, count:] == 0).all()
            if reducer not in ("hybrid", "vidtldr"):
                counted = torch.bincount(rows[rows >= 0], minlength=count).float()
                assert torch.equal(encoded.sizes[frame, depth, :count], counted)


@pytest.mark.parametrize(
    ("reducer", "settings"),
    [
        ("tome", {"num_merged": 0}),
        ("random_drop", {"keep": 1.0}),
        ("algm", {"local_threshold": 1.1, "global_threshold": 1.1}),
        ("evs", {"prune": 0.0}),
        ("fewer_frames", {"stride": 1}),
        ("lower_resolution", {"keep": 1.0}),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_no_reduction_gives_the_features_of_the_plain_encoder(
    name: str, reducer: str, settings: dict[str, Any]
) -> None:
    frames = clips().flatten(0, 1)
    plain, encoded = build(name)(frames), build(name, reducer, **settings)(frames, num_frames=4)
    # Bit for bit, except where ALGM's blocks are spelled out.
    torch.testing.assert_close(encoded.tokens, plain.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.prefix, plain.prefix, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_static_clip_costs_one_frame_and_is_restored_by_carrying(name: str) -> None:
    frames = clips()[2]
    plain = build(name)(frames)
    encoded = build(name, "evs", threshold=0.01)(frames, num_frames=4)
    assert encoded.counts is not None
    assert encoded.assignment is not None
    assert encoded.counts[:, 0].tolist() == [25, 0, 0, 0]
    # Frame by frame rows become rows of the clip, as a reader lays them out.
    clip_rows = encoded.assignment[:, 0].reshape(1, -1)
    restored = unmerge(encoded.tokens[:1, 0], clip_rows, fill="carry", num_frames=4)
    torch.testing.assert_close(restored.view(4, 25, -1), plain.tokens[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.prefix, plain.prefix, atol=1e-5, rtol=1e-5)


def test_the_content_decides_random_choices_and_not_the_place_in_the_batch() -> None:
    encoder = build("vit_tiny_patch16_224", "random_drop", num_merged=3)
    frames = clips().flatten(0, 1)
    first, again = encoder(frames), encoder(frames.flip(0))
    assert first.assignment is not None
    assert again.assignment is not None
    assert torch.equal(first.assignment, again.assignment.flip(0))
    # The four equal frames of the third clip draw alike, the four of the first do not.
    assert len(first.assignment[8:].unique(dim=0)) == 1
    assert len(first.assignment[:4].unique(dim=0)) == 4


def test_the_description_names_the_reduction() -> None:
    described = build("vit_tiny_patch16_224", "tome", keep=0.5).describe()["reduction"]
    assert described["kind"] == "BlockBipartite"
    assert described["keep"] == 0.5
    assert build("vit_tiny_patch16_224").describe()["reduction"] is None


def test_a_reducer_for_cached_tokens_has_no_place_in_the_encoder() -> None:
    with pytest.raises(ValueError, match="reduces cached tokens"):
        build("vit_tiny_patch16_224", "divprune", keep=0.5)


def test_a_reducer_that_does_not_fit_the_encoder_is_refused() -> None:
    with pytest.raises(VidflowError, match="the encoder has 12"):
        build("vit_tiny_patch16_224", "tome", num_merged=[1] * 13)


def test_frames_that_are_no_whole_clips_are_a_misuse() -> None:
    with pytest.raises(ValueError, match="not a whole number of clips"):
        build("vit_tiny_patch16_224", "evs", prune=0.5)(clips()[0, :3], num_frames=2)
