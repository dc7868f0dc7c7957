"""The output of an image encoder: tokens of a batch of frames, and the patches that they stand for.

Axes: B frames, T frames of a clip, K tapped depths, N tokens, P prefix tokens (class token and registers), D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.models.encoder.clip_encoder import TokenArrays
from vidflow.models.encoder.reduced_vit import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFrames:
    """Tokens of a batch of frames.

    Attributes:
        tokens: Patch tokens of each tapped depth; where counts differ, rows are padded with zeros.
        prefix: Class token and registers of the last tapped depth.
        sizes: Number of patches each token stands for, 0 on padding; None without reduction.
        assignment: Index of the token of each patch of the frame, -1 if it was dropped; None without reduction.
        counts: Number of tokens of each frame and depth; None without reduction.
        num_frames: Frames of a clip, T; the frames of one clip follow one another.
    """

    tokens: Float[Tensor, "B K N D"]
    prefix: Float[Tensor, "B P D"]
    sizes: Float[Tensor, "B K N"] | None = None
    assignment: Int[Tensor, "B K patches"] | None = None
    counts: Int[Tensor, "B K"] | None = None
    num_frames: int = 1

    def clips(self) -> Iterator[TokenArrays]:
        """Copy the tokens of each clip to the host, in fp16; padding is left out."""
        tokens, prefix = self.tokens.to(torch.float16).cpu().numpy(), self.prefix.to(torch.float16).cpu().numpy()
        counts = np.full(tokens.shape[:2], tokens.shape[2]) if self.counts is None else self.counts.cpu().numpy()
        sizes = None if self.sizes is None else self.sizes.cpu().numpy()
        assignment = None if self.assignment is None else self.assignment.cpu().numpy()
        is_token = np.arange(tokens.shape[2]) < counts[..., None]
        for start in range(0, len(tokens), self.num_frames):
            part = slice(start, start + self.num_frames)
            yield TokenArrays(
                tokens=tokens[part][is_token[part]],
                prefix=prefix[part],
                counts=counts[part].astype(np.int32),
                sizes=None if sizes is None else sizes[part][is_token[part]],
                assignment=None if assignment is None else number_rows(assignment[part], counts[part]),
            )


def number_rows(
    assignment: Int[np.ndarray, "T K patches"], counts: Int[np.ndarray, "T K"]
) -> Int[np.ndarray, "T K patches"]:
    """Turn token numbers within a frame into numbers within the clip's tokens of that depth; -1 stays -1."""
    before = counts.cumsum(axis=0) - counts
    return np.where(assignment < 0, -1, assignment + before[..., None])


def pack_taps(taps: Sequence[Tokens], *, num_prefix: int) -> EncodedFrames:
    """Stack the tapped depths of a reduced encoder; deeper ones have fewer tokens and are padded."""
    longest = max(tap.sizes.shape[1] for tap in taps)
    tokens, sizes, counts = [], [], []
    for tap in taps:
        missing = longest - tap.sizes.shape[1]
        valid = tap.valid()
        patches = tap.tokens[:, num_prefix:]
        # Final norm and biases make padding nonzero.
        patches = patches if valid is None else patches * valid.unsqueeze(-1)
        tokens.append(F.pad(patches, (0, 0, 0, missing)))
        sizes.append(F.pad(tap.sizes, (0, missing)))
        counts.append(torch.full_like(tap.assignment[:, 0], tap.sizes.shape[1]) if tap.counts is None else tap.counts)
    return EncodedFrames(
        tokens=torch.stack(tokens, dim=1),
        prefix=taps[-1].tokens[:, :num_prefix],
        sizes=torch.stack(sizes, dim=1),
        assignment=torch.stack([tap.assignment for tap in taps], dim=1),
        counts=torch.stack(counts, dim=1),
    )


__all__ = ["EncodedFrames", "number_rows", "pack_taps"]
