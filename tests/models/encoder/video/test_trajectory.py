"""Motionformer: trajectory attention against its equations, and what the two groupings do to its frames."""

from typing import Any

import pytest
import torch
from tiny import clips_for, tiny_classifier
from torch import Tensor

from vidflow.models.encoder.video import with_reduction
from vidflow.models.encoder.video.attentions import along_trajectories
from vidflow.models.encoder.video.blocks import Block
from vidflow.models.encoder.video.state import ClipTokens, whole_clip
from vidflow.models.reduction.bipartite import BlockBipartite


def clip_of(num_frames: int) -> ClipTokens:
    tokens = torch.randn(2, 1 + num_frames * 9, 48, generator=torch.Generator().manual_seed(0))
    return whole_clip(tokens, num_prefix=1, grid=(num_frames, 3, 3), is_rotary=False)


def by_the_equations(block: Block, state: ClipTokens, num_frames: int, log_sizes: Tensor) -> Tensor:
    """Return the output of trajectory attention with a table of all pairs, one query and frame at a time."""
    queries, keys, values = block.attention.project(block.attention.norm(state.tokens))
    scale = queries.shape[-1] ** -0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys) * scale
    first = torch.einsum("bhqk,bhkd->bhqd", scores[:, :, :1].softmax(-1), values)
    scores = (scores[:, :, 1:, 1:] + log_sizes[:, None, None]).unflatten(3, (num_frames, -1)).softmax(-1)
    points = torch.einsum("bhqfm,bhfmd->bqfhd", scores, values[:, :, 1:].unflatten(2, (num_frames, -1))).flatten(3)
    per_frame = points.shape[1] // num_frames
    own = torch.stack([points[:, i, i // per_frame] for i in range(points.shape[1])], dim=1)
    assert block.trajectory is not None
    query, key, value = block.trajectory(own, points)
    weights = (torch.einsum("bnhd,bnhfd->bnhf", query, key) * scale).softmax(-1)
    rest = torch.einsum("bnhf,bnhfd->bnhd", weights, value).flatten(2)
    return block.attention.output(torch.cat([first.transpose(1, 2).flatten(2), rest], dim=1))


@pytest.mark.parametrize("attention", ["fused", "eager"])
@pytest.mark.parametrize("published_values", [True, False])
@pytest.mark.parametrize("is_merged", [False, True])
def test_attention_is_that_of_the_equations(attention: Any, published_values: bool, is_merged: bool) -> None:
    classifier = tiny_classifier("motionformer", attention, published_values=published_values)
    walk = with_reduction(classifier, BlockBipartite(num_merged=1)).walk
    block, state = classifier.model.backbone.blocks[1], clip_of(4)
    sizes = torch.arange(36).remainder(5).add(1.0).expand(2, -1)
    state = ClipTokens(
        tokens=state.tokens, num_prefix=1, sizes=sizes, assignment=state.assignment, positions=None,
        is_merged=is_merged,
    )  # fmt: skip
    with torch.inference_mode():
        found = walk.attention(block, state).tokens - state.tokens
        wanted = by_the_equations(block, state, 4, sizes.log() * is_merged)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_in_one_frame_a_patch_attends_to_the_patches_as_usual() -> None:
    classifier = tiny_classifier("motionformer", num_frames=2)
    block, state = classifier.model.backbone.blocks[0], clip_of(1)
    with torch.inference_mode():
        queries, keys, values = block.attention.project(block.attention.norm(state.tokens))
        heads = torch.nn.functional.scaled_dot_product_attention(queries, keys[:, :, 1:], values[:, :, 1:])
        wanted = block.attention.output(heads.transpose(1, 2).flatten(2))[:, 1:]
        found = (classifier.walk.attention(block, state).tokens - state.tokens)[:, 1:]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_equal_points_are_weighted_equally_along_a_trajectory() -> None:
    block = tiny_classifier("motionformer").model.backbone.blocks[0]
    assert block.trajectory is not None
    points = torch.randn(1, 36, 1, 48, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 4, -1)
    with torch.inference_mode():
        torch.testing.assert_close(along_trajectories(block, points, 4), points[:, :, 0], atol=1e-6, rtol=1e-6)


def test_groups_by_frame_keep_frames_pure_and_the_published_ones_mix_them_at_once() -> None:
    """The released merging code writes merged tokens back in an order that its attention does not know."""
    classifier = tiny_classifier("motionformer", num_frames=16, image_size=224)
    clips = clips_for(classifier, 1)
    frame_of_patch = torch.arange(8).repeat_interleave(196)
    for num_blocks in (1, 3):
        shares = {}
        for scope in ("frame", "stride"):
            reducer = BlockBipartite(num_merged=(18,) * num_blocks, scope=scope)
            encoded = with_reduction(classifier, reducer).encode(clips)
            assert encoded.assignment is not None
            chunk = encoded.assignment[0] // (encoded.tokens.shape[1] // 8)
            shares[scope] = float((chunk == frame_of_patch).float().mean())
        assert shares["frame"] == 1
        assert 0.11 < shares["stride"] < 0.16  # by chance: 0.125
