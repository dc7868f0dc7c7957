"""Walk a timm vision transformer block by block, leaving its classes and weights as they are.

Axes: B images, S tokens of a sequence (P prefix tokens, then N patch tokens), D embedding width, K tapped depths.
"""

from collections.abc import Sequence

from jaxtyping import Float
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

TimmVit = VisionTransformer | Eva


def embed_patches(
    vit: TimmVit, images: Float[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "..."] | None]:
    """Turn images into the sequence that enters the first block, and the rotary embedding of its grid, if any."""
    tokens = vit.patch_embed(images)
    if isinstance(vit, Eva):
        tokens, rope = vit._pos_embed(tokens)
        return vit.norm_pre(tokens), rope
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(tokens))), None


def walk_blocks(
    vit: TimmVit, images: Float[Tensor, "B 3 H W"], *, depths: Sequence[int], normalize: bool
) -> list[Float[Tensor, "B S D"]]:
    """Run the blocks up to the last wanted one and return the sequence after each wanted block.

    Args:
        vit: A timm model in evaluation mode.
        images: Normalised images of the size the model was built for.
        depths: Indices of the wanted blocks, from 0, ascending.
        normalize: Whether to apply the model's final norm to each.
    """
    tokens, rope = embed_patches(vit, images)
    taps = []
    for index, block in enumerate(vit.blocks[: depths[-1] + 1]):
        tokens = block(tokens) if rope is None else block(tokens, rope=rope_of_block(vit, rope, index))
        if index in depths:
            taps.append(vit.norm(tokens) if normalize else tokens)
    return taps


def rope_of_block(vit: TimmVit, rope: Float[Tensor, "..."], index: int) -> Float[Tensor, "..."]:
    """Select one block's rotary embedding; only the mixed kind differs from block to block."""
    return rope[index] if isinstance(vit, Eva) and vit.rope_mixed else rope


__all__ = ["TimmVit", "embed_patches", "rope_of_block", "walk_blocks"]
