"""Motionformer, our own: a video transformer with trajectory attention, under the names of its released checkpoints.

Axes: B clips, T input frames, Y and X pixels, S tokens of a sequence (class token, then n = F x N patch tokens), F
output frames, D width, h heads, d width of a head.

Source: "Keeping Your Eye on the Ball" (Patrick et al., NeurIPS 2021), section 3 and the released configurations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.models.encoder.video.blocks import AttentionPart, Backbone, Block, Heads, split_heads

_EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionformerConfig:
    """The settings of a Motionformer.

    Attributes:
        num_frames: Input frames T.
        tubelet_size: Frames of a patch.
        image_size: Side of the square frames in pixels.
        patch_size: Side of a square patch in pixels.
        table_size: Patches per side of the stored table of positions, which is resampled to the frames' grid; None is
            the grid.
        hidden_size: Width D.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Heads h.
        intermediate_size: Width within the MLP.
        num_labels: Classes by head; the single head of most models is `class`.
        published_values: Whether attention along trajectories takes the points themselves as values, as the released
            checkpoints were trained; else their projections, as in the paper.
    """

    num_frames: int = 16
    tubelet_size: int = 2
    image_size: int = 224
    patch_size: int = 16
    table_size: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_labels: Mapping[str, int] | None = None
    published_values: bool = True


class Motionformer(nn.Module):
    """The weights, under their released names; `motionformer_backbone` runs them."""

    def __init__(self, config: MotionformerConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        side = config.table_size or config.image_size // patch
        kernel = (config.tubelet_size, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + side**2, width) * 0.02)
        self.temp_embed = nn.Parameter(torch.randn(1, config.num_frames // config.tubelet_size, width) * 0.02)
        self.patch_embed_3d = nn.ModuleDict({"proj": nn.Conv3d(3, width, kernel, stride=kernel)})
        self.blocks = nn.ModuleList([MotionformerBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        if config.num_labels:
            self.pre_logits = nn.ModuleDict({"fc": nn.Linear(width, width)})
            for name, count in zip(head_names(config), config.num_labels.values(), strict=True):
                self.add_module(name, nn.Linear(width, count))

    def embed(self, pixels: Float[Tensor, "B T 3 Y X"]) -> Float[Tensor, "B S D"]:
        """Return class token and patch tokens with positions, frame by frame."""
        patches = self.patch_embed_3d["proj"](pixels.transpose(1, 2))
        table = self.resampled_table(patches.shape[3])
        positions = table[:, 1:].unsqueeze(1) + self.temp_embed.unsqueeze(2)
        patches = patches.flatten(3).permute(0, 2, 3, 1) + positions
        first = (self.cls_token + table[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([first, patches.flatten(1, 2)], dim=1)

    def resampled_table(self, side: int) -> Float[Tensor, "1 cells D"]:
        """Return the table of positions at the grid of the frames, bicubically resampled as released."""
        stored = math.isqrt(self.pos_embed.shape[1] - 1)
        if side == stored:
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (stored, stored)).permute(0, 3, 1, 2)
        table = F.interpolate(table, scale_factor=side / stored, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)


class MotionformerBlock(nn.Module):
    """One block: trajectory attention and an MLP."""

    def __init__(self, config: MotionformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPSILON), nn.LayerNorm(width, eps=_EPSILON)
        self.attn = nn.ModuleDict(
            {
                "qkv": nn.Linear(width, 3 * width),
                "proj_q": nn.Linear(width, width),
                "proj_kv": nn.Linear(width, 2 * width),
                "proj": nn.Linear(width, width),
            }
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, width)}
        )


def motionformer_backbone(model: Motionformer) -> Backbone:
    """Return the parts of a model; its logits are those before the softmax that the released code applies."""
    config = model.config
    heads = dict(zip(config.num_labels or {}, head_names(config), strict=True))

    def classify(tokens: Tensor) -> Mapping[str, Tensor]:
        hidden = torch.tanh(model.pre_logits["fc"](tokens[:, 0]))
        return {head: model.get_submodule(name)(hidden) for head, name in heads.items()}

    return Backbone(
        model=model,
        num_prefix=1,
        embed=model.embed,
        blocks=tuple(_block(block, config) for block in model.blocks),
        finish=model.norm,
        classify=classify if heads else None,
        stock=None,
    )


def head_names(config: MotionformerConfig) -> list[str]:
    """Return the released names of the heads: `head`, or `head0` and `head1` where there are two."""
    count = len(config.num_labels or {})
    return ["head"] if count == 1 else [f"head{index}" for index in range(count)]


def _block(block: nn.Module, config: MotionformerConfig) -> Block:
    assert isinstance(block, MotionformerBlock)
    attention, num_heads = block.attn, config.num_attention_heads

    def project(tokens: Tensor) -> Heads:
        joint = attention["qkv"](tokens).unflatten(2, (3, num_heads, -1))
        queries, keys, values = joint.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def trajectory(own: Float[Tensor, "B n D"], points: Float[Tensor, "B n F D"]) -> Heads:
        """Return queries (B, n, h, d), and keys and values (B, n, h, F, d)."""
        queries = attention["proj_q"](own).unflatten(2, (num_heads, -1))
        keys, values = attention["proj_kv"](points).chunk(2, dim=-1)
        keys, values = (
            split_heads(part.flatten(0, 1), num_heads).unflatten(0, points.shape[:2])
            for part in (keys, points if config.published_values else values)
        )
        return queries, keys, values

    def mlp(tokens: Tensor) -> Tensor:
        output: Tensor = block.mlp["fc2"](F.gelu(block.mlp["fc1"](tokens)))
        return output

    return Block(
        attention=AttentionPart(norm=block.norm1, project=project, output=attention["proj"]),
        mlp_norm=block.norm2,
        mlp=mlp,
        trajectory=trajectory,
    )


__all__ = ["Motionformer", "MotionformerConfig", "head_names", "motionformer_backbone"]
