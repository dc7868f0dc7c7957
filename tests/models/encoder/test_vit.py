"""The block walk against timm's own forward passes, on tiny models with random weights."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from vidflow.models.encoder.vit import walk_blocks

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
# One of each kind of block arithmetic: plain, two prefix tokens, LayerScale, LayerScale with registers, SwiGLU,
# rotary with prefix and without query-key biases, rotary that differs per block, norm before the blocks,
# no class token, query-key norms.
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": TINY,
    "deit_tiny_distilled_patch16_224": TINY,
    "deit3_small_patch16_224": TINY,
    "vit_small_patch14_dinov2": TINY,
    "vit_small_patch14_reg4_dinov2": TINY,
    "vit_small_patch16_dinov3": TINY,
    "vit_small_patch16_dinov3_qkvb": TINY,
    "vit_small_plus_patch16_dinov3": TINY,
    "eva02_tiny_patch14_224": TINY,
    "vit_small_patch16_rope_mixed_224": TINY,
    "vit_base_patch16_clip_224": TINY,
    "vit_base_patch16_siglip_224": TINY,
    "vit_base_patch16_224.mae": TINY,
    "vit_base_patch16_reg4_gap_256": TINY | {"qk_norm": True},
}


def tiny_vit(name: str, img_size: int, **overrides: Any) -> nn.Module:
    """Build a tiny model whose every parameter is away from its neutral start, so that none can be forgotten."""
    torch.manual_seed(0)
    vit = timm.create_model(name, img_size=img_size, **(MODELS[name] | overrides)).eval()
    for parameter in vit.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return vit.requires_grad_(False)


def images(vit: Any, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("patches_per_side", [2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_the_walk_equals_forward_features(name: str, patches_per_side: int) -> None:
    vit = tiny_vit(name, patches_per_side * (14 if "patch14" in name else 16))
    frames = images(vit)
    (walked,) = walk_blocks(vit, frames, depths=[2], normalize=True)
    # The same modules in the same order: any difference is an error.
    assert torch.equal(walked, vit.forward_features(frames))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_taps_equal_forward_intermediates(name: str, normalize: bool) -> None:
    vit = tiny_vit(name, 56 if "patch14" in name else 64)
    frames = images(vit)
    taps = walk_blocks(vit, frames, depths=[0, 2], normalize=normalize)
    wanted = vit.forward_intermediates(
        frames, indices=[0, 2], norm=normalize, output_fmt="NLC", intermediates_only=True
    )
    for tap, patches in zip(taps, wanted, strict=True):
        assert torch.equal(tap[:, vit.num_prefix_tokens :], patches)


def test_blocks_past_the_last_tap_do_not_run() -> None:
    vit = tiny_vit("vit_tiny_patch16_224", 32)
    vit.blocks[2] = nn.Identity()
    vit.blocks[2].forward = lambda tokens: pytest.fail("the block past the last tap ran")  # type: ignore[method-assign]
    assert len(walk_blocks(vit, images(vit), depths=[1], normalize=False)) == 1
