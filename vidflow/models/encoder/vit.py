"""Run the parts of a timm vision transformer without changing it: its embedding, its blocks, the steps of a block.

Axes: B images, S tokens of a sequence (P prefix tokens, then N patch tokens), D embedding width, h heads, d width of a
head, K tapped depths.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vidflow.errors import VidflowError

TimmVit = VisionTransformer | Eva
Adapt = Callable[[Tensor], Tensor]
"""A map of tokens to tokens of the same width, such as a trained adapter."""


def embed_patches(
    vit: TimmVit, images: Float[Tensor, "B 3 H W"], *, added: Float[Tensor, "B 1 D"] | None = None
) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "..."] | None]:
    """Return the sequence that enters the first block, and the rotary embedding of the grid if the model has one.

    Args:
        vit: A timm model in evaluation mode.
        images: Normalised images of the size the model was built for.
        added: What is added to all tokens of an image after the position embedding, before any norm; None is nothing.
    """
    tokens = vit.patch_embed(images)
    rope = None
    if isinstance(vit, Eva):
        tokens, rope = vit._pos_embed(tokens)
    else:
        tokens = vit.patch_drop(vit._pos_embed(tokens))
    return vit.norm_pre(tokens if added is None else tokens + added), rope


def rotary_embedding(vit: TimmVit) -> Float[Tensor, "..."] | None:
    """Return the rotary embedding of the grid as `embed_patches` does, without images; None if the model has none."""
    rope: Any = getattr(vit, "rope", None)
    if not isinstance(vit, Eva) or rope is None:
        return None
    embedding: Tensor = (
        rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=vit.patch_embed.grid_size)
    )
    return embedding


def walk_blocks(
    vit: TimmVit, images: Float[Tensor, "B 3 H W"], *, depths: Sequence[int], normalize: bool
) -> list[Float[Tensor, "B S D"]]:
    """Run the blocks up to the last tapped one and return the sequence after each tapped block.

    Args:
        vit: A timm model in evaluation mode.
        images: Normalised images of the size the model was built for.
        depths: Indices of the tapped blocks, from 0, ascending.
        normalize: Whether to apply the model's final norm to each.
    """
    tokens, rope = embed_patches(vit, images)
    taps = []
    for index in range(depths[-1] + 1):
        tokens = run_block(vit, index, tokens, rope)
        if index in depths:
            taps.append(vit.norm(tokens) if normalize else tokens)
    return taps


def run_block(
    vit: TimmVit, index: int, tokens: Float[Tensor, "B S D"], rope: Float[Tensor, "..."] | None
) -> Float[Tensor, "B S D"]:
    """Call one block of timm."""
    block: Any = vit.blocks[index]
    output: Tensor = block(tokens) if rope is None else block(tokens, rope=rope_of_block(vit, rope, index))
    return output


def rope_of_block(vit: TimmVit, rope: Float[Tensor, "..."], index: int) -> Float[Tensor, "..."]:
    """Select one block's rotary embedding; only mixed embeddings differ from block to block."""
    return rope[index] if isinstance(vit, Eva) and vit.rope_mixed else rope


def check_blocks(vit: TimmVit) -> None:
    """Check that the functions below can compute every block.

    Raises:
        VidflowError: They cannot. Reducing in the other blocks only would silently reduce less than configured.
    """
    for index, block in enumerate(vit.blocks):
        attention = block.attn if isinstance(block, Block | EvaBlock) else None
        if type(attention) not in (Attention, EvaAttention, AttentionRope):
            kind = (
                type(block).__name__ if attention is None else f"{type(block).__name__} with {type(attention).__name__}"
            )
            raise VidflowError(
                f"block {index} is a {kind}, inside which tokens cannot be reduced; reduce after the encoder"
            )


def project_heads(attention: nn.Module, tokens: Float[Tensor, "B S D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention's queries, keys and values (B, h, S, d), before any rotation."""
    module: Any = attention
    if module.qkv is None:
        # Keys and values may have fewer heads than queries.
        projected = (module.q_proj(tokens), module.k_proj(tokens), module.v_proj(tokens))
        queries, keys, values = (heads.unflatten(2, (-1, module.head_dim)).transpose(1, 2) for heads in projected)
    else:
        bias = (
            None
            if getattr(module, "q_bias", None) is None
            else torch.cat([module.q_bias, module.k_bias, module.v_bias])
        )
        joint = module.qkv(tokens) if bias is None else module.qkv(tokens) + bias
        queries, keys, values = joint.unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return module.q_norm(queries), module.k_norm(keys), values


def rotate_heads(
    attention: nn.Module,
    heads: Float[Tensor, "B h S d"],
    rope: Float[Tensor, "... N sincos"] | None,
    *,
    num_prefix: int,
) -> Float[Tensor, "B h S d"]:
    """Rotate queries or keys by the embedding of their positions; prefix tokens are not rotated."""
    if rope is None:
        return heads
    half = bool(getattr(attention, "rotate_half", False))
    rotated = apply_rot_embed_cat(heads[:, :, num_prefix:], rope, half=half)
    return torch.cat([heads[:, :, :num_prefix], rotated], dim=2).type_as(heads)


def add_attention(
    block: nn.Module,
    residual: Float[Tensor, "B S D"],
    normed: Float[Tensor, "B S D"],
    heads: Float[Tensor, "B h S d"],
    *,
    after: Adapt | None = None,
) -> Float[Tensor, "B S D"]:
    """Project the output of the heads and add it to the residual stream; `after` acts on the projection."""
    module: Any = block
    attention = module.attn
    output = attention.norm(heads.transpose(1, 2).flatten(2))
    if attention.gate is not None:
        output = output * attention.gate(normed).sigmoid()
    output = attention.proj_drop(attention.proj(output))
    output = output if after is None else after(output)
    if isinstance(block, EvaBlock):
        scaled = output if module.gamma_1 is None else module.gamma_1 * output
    else:
        scaled = module.ls1(output)
    return torch.add(residual, module.drop_path1(scaled))


def add_mlp(
    block: nn.Module, residual: Float[Tensor, "B S D"], *, before: Adapt | None = None, after: Adapt | None = None
) -> Float[Tensor, "B S D"]:
    """Add the block's MLP to the residual stream; `before` and `after` act on its input and its output."""
    module: Any = block
    normed = module.norm2(residual)
    output = module.mlp(normed if before is None else before(normed))
    output = output if after is None else after(output)
    if isinstance(block, EvaBlock):
        scaled = output if module.gamma_2 is None else module.gamma_2 * output
    else:
        scaled = module.ls2(output)
    return torch.add(residual, module.drop_path2(scaled))


__all__ = [
    "Adapt",
    "TimmVit",
    "add_attention",
    "add_mlp",
    "check_blocks",
    "embed_patches",
    "project_heads",
    "rope_of_block",
    "rotary_embedding",
    "rotate_heads",
    "run_block",
    "walk_blocks",
]
