"""Multiply-accumulates of an adapted encoder, per clip.

Axes: D width, R rank, T frames, S tokens of a frame, N patch tokens.
"""

from vidflow.config.schema import Adaptation
from vidflow.models.encoder.adapted.encoder import rank_of
from vidflow.models.encoder.inti_reconstructed import count_pair_macs
from vidflow.models.reduction.macs import VitShape, count_macs


def count_adapted_macs(
    shape: VitShape, adaptation: Adaptation | None, *, num_frames: int, last: int | None = None, merged: bool = True
) -> int:
    """Count the multiply-accumulates of a clip.

    Heads that read other frames and merged adapters cost nothing. An adapter that is not merged costs 2 R D per token.

    Args:
        shape: The encoder.
        adaptation: What was added to it; None is nothing.
        num_frames: Frames of the clip.
        last: The last block that runs; None is the encoder's.
        merged: Whether the adapters are in the weights.
    """
    adaptation = adaptation or Adaptation(places=[])
    num_tokens, width = shape.num_patches + shape.num_prefix, shape.embed_dim
    adapters = 0 if merged else 2 * len(adaptation.places) * rank_of(adaptation, width) * num_tokens * width
    embedding = count_macs(shape, [shape.num_patches])
    block = count_macs(shape, [shape.num_patches] * 2) - embedding
    total = num_frames * embedding
    for index in range(shape.depth if last is None else last + 1):
        if index in adaptation.interpolate_after:
            num_frames = -(-num_frames // 2)
            total += num_frames * count_pair_macs(width, num_patches=shape.num_patches, num_prefix=shape.num_prefix)
        total += num_frames * (block + (adapters if index >= adaptation.first_block else 0))
    return total


__all__ = ["count_adapted_macs"]
