"""Encoders of any depth and grid, for checks of settings."""

from vidflow.models.reduction.macs import VitShape


def vit_shape(*, depth: int, side: int) -> VitShape:
    """Return a narrow encoder without prefix tokens."""
    return VitShape(
        depth=depth,
        embed_dim=8,
        num_heads=1,
        attention_weights=4 * 8**2,
        mlp_weights=8 * 8**2,
        grid=(side, side),
        num_prefix=0,
        patch_values=12,
    )
