"""The core VTM: tokens of groups of frames are merged in three blocks, and the mean of what is left is the output.

Axes: B clips, T frames, N tokens of a frame, D width, G groups of the last block, O width of the output (D / 4).
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.errors import VidflowError
from vidflow.models.clip_draws import draw_uniform
from vidflow.models.cores.plain import running_means
from vidflow.models.cores.temporal_core import State, StateShape, TemporalCore
from vidflow.models.cores.vtm_block import VtmBlock, VtmSettings

# Widths before, between and behind the blocks, as divisors of D: 1024, 512, 512, 256.
_DIVISORS = (1, 2, 2, 4)
# The groups of a block as shares of those of the next: 6 of 30, 30 of 60 frames.
_PARTS = (2, 5)


class VtmCore(TemporalCore):
    """Merge the tokens of groups of frames into the most salient ones, block by block, down to one mean token.

    Each of three blocks runs on groups of frames without overlap. The output is one token for each group of the last
    block: the mean of all tokens that are left of the groups so far. It has a quarter of the width. Nothing tells the
    order of frames within a group, as in the published text. Only groups of one frame can be streamed.

    Source: Lee et al. 2024, Video Token Merging for Long-form Video Understanding (NeurIPS 2024, arXiv 2410.23782),
    learnable VTM: groups of 6, 30 and 60 frames, one target in 6 tokens, width 1024 to 256, heads on the mean token.
    Our choices: groups in these proportions for other lengths; the widths between; in evaluation the most salient
    tokens instead of a draw; the norm that ends every core.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, settings: VtmSettings | None = None, *, dropout: float = 0.1
    ) -> None:
        if embed_dim % _DIVISORS[-1]:
            raise ValueError(f"embed_dim is {embed_dim}; vtm narrows it to a quarter, so it must be a multiple of 4")
        if (embed_dim // 2) % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide embed_dim {embed_dim} and its half for vtm")
        super().__init__(embed_dim)
        self.settings = settings or VtmSettings()
        widths = [embed_dim // divisor for divisor in _DIVISORS]
        self.output_dim = widths[-1]
        self.blocks = nn.ModuleList(
            VtmBlock(width, narrower, num_heads, settings=self.settings, dropout=dropout)
            for width, narrower in itertools.pairwise(widths)
        )
        self.output_norm = nn.LayerNorm(self.output_dim)

    @property
    def can_stream(self) -> bool:
        """Whether every group is one frame."""
        return self.settings.groups is not None and set(self.settings.groups) == {1}

    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Remember the mean over the groups so far and their number."""
        del num_tokens
        return ((1, self.output_dim), None), ((), torch.int64)

    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B G 1 O"], State]:
        """Merge the tokens of every group, and update the mean group by group.

        Raises:
            VidflowError: The frames do not make whole groups.
            ValueError: A clip in parts, if its groups depend on its length.
        """
        if state is not None and self.settings.groups is None:
            raise ValueError("vtm without `groups` takes whole clips: they decide the groups; got a state")
        batch, num_frames = tokens.shape[:2]
        groups = self.groups_of(num_frames)
        x = tokens.flatten(0, 1)
        aux = x if self.training else None
        noises = self._draw_noise(tokens) if self.training else [None] * len(self.blocks)
        for block, length, noise in zip(self.blocks, groups, noises, strict=True):
            shape = (batch * (num_frames // length), -1, x.shape[-1])
            x, aux = block(x.reshape(shape), None if aux is None else aux.reshape(shape), noise)
        merged = x.mean(1).unflatten(0, (batch, -1))[:, :, None]
        means, state = running_means(merged, self._start(merged, state))
        return self.output_norm(means), state

    def step(self, tokens: Float[Tensor, "B N D"], state: State | None = None) -> tuple[Float[Tensor, "B 1 O"], State]:
        """Advance every stream by one frame.

        Raises:
            ValueError: A group is more than one frame.
        """
        if not self.can_stream:
            raise ValueError("vtm sees groups of frames, so it cannot run frame by frame; groups of 1 can")
        return super().step(tokens, state)

    def groups_of(self, num_frames: int) -> tuple[int, ...]:
        """Return the frames of a group in each block.

        Raises:
            VidflowError: Groups of that size do not divide the frames.
        """
        groups = self.settings.groups
        if groups is None:
            return fit_groups(num_frames)
        if num_frames % groups[-1]:
            raise VidflowError(
                f"vtm_groups is {list(groups)}, but clips have {num_frames} frames; wanted groups that divide them"
            )
        return groups

    def tokens_per_group(self, num_frames: int, num_tokens: int) -> list[int]:
        """Return the tokens of a group that enter each block, and those that are left behind the last one."""
        counts, before = [num_tokens], 1
        for length in self.groups_of(num_frames):
            counts[-1] *= length // before
            counts.append(self.settings.num_left(counts[-1]))
            before = length
        return counts

    def macs(self, num_frames: int, num_tokens: int) -> int:
        """Return the multiply-accumulates of a clip in evaluation."""
        counts = self.tokens_per_group(num_frames, num_tokens)
        parts = zip(self._blocks(), self.groups_of(num_frames), counts[:-1], strict=True)
        return sum(num_frames // length * block.macs(count) for block, length, count in parts)

    def _draw_noise(self, tokens: Float[Tensor, "B T N D"]) -> Sequence[Float[Tensor, "R n"]]:
        """Draw Gumbel noise for every token of every block."""
        batch, num_frames, num_tokens, _ = tokens.shape
        counts = self.tokens_per_group(num_frames, num_tokens)[:-1]
        sizes = [num_frames // length * count for length, count in zip(self.groups_of(num_frames), counts, strict=True)]
        uniform = draw_uniform(batch, sum(sizes), purpose="vtm", device=tokens.device)
        gumbel = -torch.log(-torch.log(uniform))
        return [part.reshape(-1, count) for part, count in zip(gumbel.split(sizes, dim=1), counts, strict=True)]

    def _blocks(self) -> list[VtmBlock]:
        return [block for block in self.blocks if isinstance(block, VtmBlock)]


def fit_groups(num_frames: int) -> tuple[int, ...]:
    """Return the published groups in proportion to a clip: the clip, a half of it, and a fifth of that.

    Each part is the largest that divides the whole: (6, 30, 60) for 60 frames, (2, 16, 32) for 32, (1, 8, 16) for 16.
    """
    groups = [num_frames]
    for parts in _PARTS:
        whole = groups[0]
        fitting = (length for length in range(max(1, whole // parts), 0, -1) if whole % length == 0)
        groups.insert(0, next(fitting))
    return tuple(groups)


__all__ = ["VtmCore", "VtmSettings", "fit_groups"]
