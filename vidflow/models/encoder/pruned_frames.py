"""Encode only some patches of each frame, at no cost for the others.

Axes: B frames, T frames of a clip, N patches of a frame, K tapped depths, P prefix tokens, D width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidflow.models.encoder.encoded import EncodedFrames

# Frames with similar counts run as one group, padded to the longest. More groups mean less padding but more launches.
_MAX_GROUPS = 8

EncodeKept = Callable[[Int[Tensor, " b"], Bool[Tensor, "b N"] | None], EncodedFrames]


def encode_pruned(encode: EncodeKept, kept: Bool[Tensor, "B N"], *, num_frames: int) -> EncodedFrames:
    """Encode the kept patches of each frame; frames with similar counts run together.

    A frame without any kept patch is not encoded. It has no tokens, and gets the prefix of the last encoded frame of
    its clip.

    Args:
        encode: Encodes the frames at the given indices, with the given patches, or with all for None.
        kept: Patches to encode; the first frame of a clip must have at least one.
        num_frames: Number of frames T of a clip; clips follow one another.
    """
    counts, order = kept.sum(1).sort(descending=True, stable=True)
    order = order[: int((counts > 0).sum())]
    parts = order.tensor_split(min(_MAX_GROUPS, len(order)))
    encoded = [encode(part, None if bool(kept[part].all()) else kept[part]) for part in parts]
    return _gather_parts(parts, encoded, kept, num_frames)


def _gather_parts(
    parts: tuple[Tensor, ...], encoded: list[EncodedFrames], kept: Bool[Tensor, "B N"], num_frames: int
) -> EncodedFrames:
    """Put the frames of all parts back into the batch's order."""
    batch, num_patches = kept.shape
    first = encoded[0]
    _, num_depths, longest, width = first.tokens.shape
    longest = max(part.tokens.shape[2] for part in encoded)
    tokens = first.tokens.new_zeros(batch, num_depths, longest, width)
    prefix = first.prefix.new_zeros(batch, *first.prefix.shape[1:])
    sizes = torch.zeros(batch, num_depths, longest, device=kept.device)
    assignment = torch.full((batch, num_depths, num_patches), -1, dtype=torch.int64, device=kept.device)
    for index, part in zip(parts, encoded, strict=True):
        length = part.tokens.shape[2]
        tokens[index, :, :length] = part.tokens
        prefix[index] = part.prefix
        if part.sizes is None or part.assignment is None:
            sizes[index, :, :length] = 1
            assignment[index] = torch.arange(num_patches, device=kept.device)
        else:
            sizes[index, :, :length] = part.sizes
            assignment[index] = part.assignment
    return EncodedFrames(
        tokens=tokens,
        prefix=prefix[_last_encoded(kept.any(1), num_frames)],
        sizes=sizes,
        assignment=assignment,
        counts=kept.sum(1, keepdim=True).expand(-1, num_depths),
    )


def _last_encoded(is_encoded: Bool[Tensor, " B"], num_frames: int) -> Int[Tensor, " B"]:
    """Return for every frame the last encoded frame of its clip, itself included."""
    index = torch.arange(len(is_encoded), device=is_encoded.device)
    return torch.where(is_encoded, index, 0).view(-1, num_frames).cummax(dim=1).values.flatten()


def shrink(frames: Float[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 h w"]:
    """Reduce images to a smaller side, bicubic with antialiasing."""
    return torch.nn.functional.interpolate(frames, size=(side, side), mode="bicubic", antialias=True)


__all__ = ["EncodeKept", "encode_pruned", "shrink"]
