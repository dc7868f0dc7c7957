"""Rotary embeddings between grid positions."""

from typing import Any

import pytest
import timm
import torch

from vidflow.models.reduction.positions import GridAngles, grid_positions


def embedding(name: str, side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    vit: Any = timm.create_model(name, img_size=side, dynamic_img_size=False)
    return vit.rope.get_embed(), vit.patch_embed.grid_size


@pytest.mark.parametrize(
    ("name", "side"),
    [("vit_small_patch16_dinov3", 48), ("vit_small_patch16_dinov3", 224), ("eva02_tiny_patch14_224", 112)],
)
def test_on_the_grid_the_embedding_is_timms(name: str, side: int) -> None:
    rope, grid = embedding(name, side)
    positions = grid_positions(grid, rope.device).unsqueeze(0)
    # Angles of up to 100 radians in float32, rounded at 1e-5.
    torch.testing.assert_close(GridAngles.of_embedding(rope, grid).embed(positions)[0, 0], rope, atol=2e-5, rtol=0)


def test_the_mixed_kind_has_angles_per_head() -> None:
    rope, grid = embedding("vit_small_patch16_rope_mixed_224", 96)
    positions = grid_positions(grid, rope.device).unsqueeze(0)
    for block in (0, 7):
        embedded = GridAngles.of_embedding(rope[block], grid).embed(positions)[0]
        torch.testing.assert_close(embedded, rope[block], atol=2e-5, rtol=0)


def test_between_grid_positions_dinov3s_own_formula_holds() -> None:
    vit: Any = timm.create_model("vit_small_patch16_dinov3", img_size=160, dynamic_img_size=False)
    grid = vit.patch_embed.grid_size
    positions = torch.rand(1, 20, 2) * (grid[0] - 1)
    embedded = GridAngles.of_embedding(vit.rope.get_embed(), grid).embed(positions)[0, 0]
    coordinates = 2 * (positions[0] + 0.5) / grid[0] - 1
    wanted = torch.cat(vit.rope._get_pos_embed_from_coords(coordinates), dim=-1)
    torch.testing.assert_close(embedded, wanted, atol=2e-5, rtol=0)
