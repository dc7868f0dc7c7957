"""The three ways in which video transformers attend over space and time, on tokens of unequal size.

Axes: B clips, S tokens of a sequence (P prefix tokens, then n = F x N patch tokens), F output frames, N tokens of a
frame, h heads, d width of a head, D width, m tokens and b = B or B x F samples of keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from vidflow.models.encoder.video.blocks import Block, join_heads
from vidflow.models.encoder.video.families import WalkKind
from vidflow.models.encoder.video.state import ClipTokens, pad_prefix


class Attend(Protocol):
    """Attention with a bias per key, as in `attention.attend`."""

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, *, num_unbiased: int = 0
    ) -> Tensor:
        """Return the heads' outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """The result of a block's attention.

    Attributes:
        tokens: The residual stream after attention.
        plain_keys: Keys by which tokens may be matched, before rotation.
        keys: The same after rotation.
        by_frame: Whether these are keys of the patches of each frame, else of whole sequences.
    """

    tokens: Float[Tensor, "B S D"]
    plain_keys: Float[Tensor, "b h m d"]
    keys: Float[Tensor, "b h m d"]
    by_frame: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Runs the attention of a block.

    Attributes:
        kind: How it goes over space and time.
        num_frames: Output frames F.
        attend: Fused attention or not.
        proportional: Whether tokens are weighted by their sizes.
        rotate: Rotates queries or keys by their positions; None without rotary embedding.
    """

    kind: WalkKind
    num_frames: int
    attend: Attend
    proportional: bool
    rotate: Callable[[Tensor, Tensor], Tensor] | None

    def __call__(self, block: Block, state: ClipTokens) -> Attended:
        """Return the residual stream after the block's attention, and its keys."""
        match self.kind:
            case "joint":
                return self.joint(block, state)
            case "divided":
                return self.divided(block, state)
            case "trajectory":
                return self.trajectory(block, state)
            case _:
                assert_never(self.kind)

    def joint(self, block: Block, state: ClipTokens) -> Attended:
        """Attend over all tokens of the clip; every query sees the sizes.

        Source: ViViT (Arnab et al., ICCV 2021), model 1; VideoMAE; V-JEPA 2.
        """
        part = block.attention
        plain_queries, plain_keys, values = part.project(part.norm(state.tokens))
        queries, keys = self.rotated(plain_queries, state), self.rotated(plain_keys, state)
        bias = pad_prefix(state.size_bias(self.proportional), state.num_prefix)
        output = part.output(join_heads(self.attend(queries, keys, values, bias)))
        return Attended(tokens=state.tokens + output, plain_keys=plain_keys, keys=keys)

    def rotated(self, heads: Float[Tensor, "B h S d"], state: ClipTokens) -> Float[Tensor, "B h S d"]:
        """Rotate by the tokens' positions; models with a rotary embedding have no prefix tokens."""
        if self.rotate is None or state.positions is None:
            return heads
        return self.rotate(heads, state.positions)

    def divided(self, block: Block, state: ClipTokens) -> Attended:
        """Attend over the tokens at one place in all frames, then over the tokens of each frame and the class token.

        The class token takes no part in time; in space it is in every frame, sees no sizes, and gets the mean of its
        outputs. Tokens have no sizes in time.

        Source: TimeSformer (Bertasius et al., ICML 2021), section 3, divided attention; sizes as in the released code
        of "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025).
        """
        frames = self.over_time(block, state.patches.unflatten(1, (self.num_frames, -1)))
        batch, part = frames.shape[0], block.attention
        prefix = state.prefix.unsqueeze(1).expand(-1, self.num_frames, -1, -1)
        queries, keys, values = part.project(part.norm(torch.cat([prefix, frames], dim=2).flatten(0, 1)))
        bias = state.size_bias(self.proportional)
        if bias is not None:
            bias = pad_prefix(bias.unflatten(1, (self.num_frames, -1)).flatten(0, 1), state.num_prefix)
        heads = self.attend(queries, keys, values, bias, num_unbiased=state.num_prefix)
        output = part.output(join_heads(heads)).unflatten(0, (batch, self.num_frames))
        prefix_output, patch_output = output[:, :, : state.num_prefix], output[:, :, state.num_prefix :]
        tokens = [state.prefix + prefix_output.mean(1), (frames + patch_output).flatten(1, 2)]
        keys = keys[:, :, state.num_prefix :]
        return Attended(tokens=torch.cat(tokens, dim=1), plain_keys=keys, keys=keys, by_frame=True)

    def over_time(self, block: Block, frames: Float[Tensor, "B F N D"]) -> Float[Tensor, "B F N D"]:
        """Attend over the tokens in one slot of all frames."""
        part = block.temporal
        assert part is not None
        heads = part.project(part.norm(frames.transpose(1, 2).flatten(0, 1)))
        output: Tensor = part.output(join_heads(self.attend(*heads, None))).unflatten(0, (frames.shape[0], -1))
        return frames + output.transpose(1, 2)

    def trajectory(self, block: Block, state: ClipTokens) -> Attended:
        """Attend within each frame, which makes a trajectory of one point per frame, then along the trajectory.

        The class token attends over all tokens and sees no sizes. Sizes act within frames only.

        Source: Motionformer (Patrick et al., NeurIPS 2021), section 3.2, equations 2 to 4; sizes as in the released
        code of "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025).
        """
        part, num_prefix = block.attention, state.num_prefix
        queries, keys, values = part.project(part.norm(state.tokens))
        class_output = self.attend(queries[:, :, :num_prefix], keys, values, None)
        points = self.points(
            queries[:, :, num_prefix:], keys[:, :, num_prefix:], values[:, :, num_prefix:],
            state.size_bias(self.proportional),
        )  # fmt: skip
        patch_output = along_trajectories(block, points, self.num_frames)
        output = part.output(torch.cat([join_heads(class_output), patch_output], dim=1))
        return Attended(tokens=state.tokens + output, plain_keys=keys, keys=keys)

    def points(
        self,
        queries: Float[Tensor, "B h n d"],
        keys: Float[Tensor, "B h n d"],
        values: Float[Tensor, "B h n d"],
        bias: Float[Tensor, "B n"] | None,
    ) -> Float[Tensor, "B n F D"]:
        """Attend from every patch to the patches of each frame; no table of all pairs of patches is made."""
        frames = self.num_frames
        queries = queries.unsqueeze(1).expand(-1, frames, -1, -1, -1).flatten(0, 1)
        keys, values = (
            heads.unflatten(2, (frames, -1)).permute(0, 2, 1, 3, 4).flatten(0, 1) for heads in (keys, values)
        )
        bias = None if bias is None else bias.unflatten(1, (frames, -1)).flatten(0, 1)
        points: Tensor = join_heads(self.attend(queries, keys, values, bias)).unflatten(0, (-1, frames))
        return points.transpose(1, 2)


def along_trajectories(block: Block, points: Float[Tensor, "B n F D"], num_frames: int) -> Float[Tensor, "B n D"]:
    """Attend from each patch's point in its own frame to its points in all frames."""
    assert block.trajectory is not None
    own = points.unflatten(1, (num_frames, -1)).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(1, 2)
    queries, keys, values = block.trajectory(own, points)
    logits = (keys @ queries.unsqueeze(-1)).squeeze(-1) * queries.shape[-1] ** -0.5
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(values.dtype)
    return (weights.unsqueeze(-2) @ values).squeeze(-2).flatten(2)


__all__ = ["Attend", "Attended", "Attention", "along_trajectories"]
