"""Counted multiply-accumulates against torch's own counter and published figures."""

from typing import Any

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidflow.models.encoder import shape_of
from vidflow.models.encoder.reduced_vit import walk_reduced
from vidflow.models.reduction.bipartite import BlockBipartite, schedule_merges
from vidflow.models.reduction.macs import VitShape, count_macs, count_tokens

SMALL = {"embed_dim": 192, "depth": 4, "num_heads": 3, "num_classes": 0}


def merged_macs(shape: VitShape, merges: list[int]) -> int:
    """Count an encoder that merges by the keys of its heads."""
    return count_macs(shape, count_tokens(shape.num_patches, merges), channels=shape.embed_dim // shape.num_heads)


def published(name: str) -> VitShape:
    """Take the shape of a model without making its weights."""
    return shape_of(timm.create_model(name, num_classes=0, device="meta"))


@pytest.mark.parametrize("num_merged", [0, 5, 13, 40])
@pytest.mark.parametrize(
    ("name", "side"),
    [("vit_tiny_patch16_224", 160), ("vit_small_patch14_reg4_dinov2", 140), ("eva02_tiny_patch14_224", 140)],
)
def test_the_formula_agrees_with_torchs_counter(name: str, side: int, num_merged: int) -> None:
    vit: Any = timm.create_model(name, img_size=side, **SMALL).eval()
    reducer = BlockBipartite(num_merged=num_merged)
    # Torch counts the unfused kernel on a CPU, not the fused one.
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        walk_reduced(vit, torch.randn(1, 3, side, side), depths=[3], normalize=False, reducer=reducer)
    # 1%: the channel that carries sizes through attention is counted by torch and not by the formula.
    assert merged_macs(shape_of(vit), [num_merged] * 4) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "num_merged", "schedule", "gmacs"),
    [
        ("vit_large_patch16_224", 0, "constant", 61.55),
        ("vit_large_patch16_224", 8, "constant", 30.96),
        ("vit_base_patch16_224", 0, "constant", 17.56),
        ("vit_base_patch16_224", 13, "constant", 10.37),
        ("vit_base_patch16_224", 16, "constant", 8.77),
        ("vit_base_patch16_224", 16, "decreasing", 5.86),
    ],
)
def test_published_figures_of_merging_come_out(name: str, num_merged: int, schedule: Any, gmacs: float) -> None:
    shape = published(name)
    merges = schedule_merges(num_merged, schedule, depth=shape.depth)
    # The figures include the classifier, a thousandth of a GMAC. ToMe (ICLR 2023) prints 61.6 and 31.0 for ViT-L.
    assert merged_macs(shape, merges) / 1e9 == pytest.approx(gmacs, abs=0.01)


def test_token_counts_follow_the_published_trajectory() -> None:
    assert [count + 1 for count in count_tokens(196, [16] * 12)][-4:] == [53, 37, 21, 11]


def test_half_of_the_tokens_is_the_most_that_goes_at_once() -> None:
    assert count_tokens(9, [100, 100, 100, 100, 100]) == [9, 5, 3, 2, 1, 1]
