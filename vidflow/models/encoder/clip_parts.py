"""Parts of an image encoder that see the frames of a clip together, and the walk through its blocks with them.

Axes: B clips, T frames, S tokens of a frame, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.clip_blocks import HeadOffsets, run_spelled_block
from vidflow.models.encoder.inti_reconstructed import IntiReconstructed
from vidflow.models.encoder.vit import TimmVit, embed_patches, run_block
from vidflow.models.reduction.build import Reducer
from vidflow.models.reduction.controls import InputLowerResolution


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipParts:
    """What joins the frames of a clip.

    Attributes:
        offsets: The frame that each head reads.
        embedding: What is added to all tokens of each frame, where the first adapted block begins; None is nothing.
        inti: InTI layers by the number of blocks before them.
    """

    offsets: HeadOffsets = field(default_factory=HeadOffsets)
    embedding: Float[Tensor, "T D"] | None = None
    inti: Mapping[int, IntiReconstructed] = field(default_factory=dict)

    @property
    def num_frames(self) -> int | None:
        """Frames that a clip must have; None if any number is fine."""
        return None if self.embedding is None else self.embedding.shape[0]

    @property
    def is_causal(self) -> bool:
        """Whether a stream of any length can be encoded frame by frame."""
        return self.offsets.is_causal and self.embedding is None and not self.inti

    @property
    def frames_per_output(self) -> int:
        """Input frames that one output frame stands for."""
        return int(2 ** len(self.inti))

    def describe(self) -> dict[str, Any]:
        """Return what joins the frames, as JSON-ready values."""
        return {
            "offsets": list(self.offsets.by_head),
            "first_block": self.offsets.first_block,
            "num_frames": self.num_frames,
            "interpolate_after": list(self.inti),
        }

    def added(self, index: int, num_clips: int) -> Float[Tensor, "frames 1 D"] | None:
        """Return what is added to the tokens of each frame that enter a block."""
        if self.embedding is None or index != self.offsets.first_block:
            return None
        return self.embedding.repeat(num_clips, 1).unsqueeze(1)

    def to(self, *, device: torch.device, dtype: torch.dtype) -> "ClipParts":
        """Return the parts on a device, in a precision, in evaluation mode."""
        embedding = None if self.embedding is None else self.embedding.detach().to(device=device, dtype=dtype)
        inti = {after: layer.to(device=device, dtype=dtype).eval() for after, layer in self.inti.items()}
        return ClipParts(offsets=self.offsets, embedding=embedding, inti=inti)

    def state(self) -> dict[str, Tensor]:
        """Return all that decides what the parts do, by name."""
        layers = {str(after): layer.state_dict() for after, layer in self.inti.items()}
        return {
            "offsets.by_head": torch.tensor(self.offsets.by_head, dtype=torch.int64),
            "offsets.first_block": torch.tensor(self.offsets.first_block),
            **({} if self.embedding is None else {"temporal_embedding": self.embedding}),
            **{f"inti.{after}.{name}": value for after, state in layers.items() for name, value in state.items()},
        }


def check_joint(reduction: Reducer | None, *, interpolates: bool) -> None:
    """Check that a token reducer can act on an encoder whose frames see one another.

    Args:
        reduction: The reducer, if any.
        interpolates: Whether the encoder has InTI layers.

    Raises:
        VidflowError: It cannot.
    """
    if reduction is None or reduction.place == "post":
        return
    if reduction.place == "input" and not isinstance(reduction, InputLowerResolution):
        raise VidflowError(
            f"{type(reduction).__name__} drops patches before the encoder, but these weights encode the frames "
            "of a clip together; reduce in the blocks or after the encoder"
        )
    if interpolates:
        raise VidflowError(
            f"{type(reduction).__name__} acts inside the encoder, but these weights join frames place by place (InTI), "
            "which wants the full grid of patches; reduce after the encoder"
        )


def check_streamable(parts: ClipParts, reduction: Reducer | None) -> None:
    """Check that a stream can be encoded frame by frame.

    Raises:
        VidflowError: It cannot; the message says which part of the weights sees more than the frames so far.
    """
    if not parts.offsets.is_causal:
        later = ", ".join(f"+{offset}" for offset in parts.offsets.by_head if offset > 0)
        raise VidflowError(
            f"heads of the encoder's weights read later frames (offsets {later}), so a stream cannot be encoded frame "
            "by frame; adapt the encoder with offsets of at most 0"
        )
    if parts.inti:
        raise VidflowError(
            "the encoder's weights make one frame of each two (InTI), so a stream cannot be encoded frame by frame; "
            "adapt the encoder without interpolate_after"
        )
    if parts.embedding is not None:
        raise VidflowError(
            f"the encoder's weights hold a temporal embedding of {parts.num_frames} frames, so a stream cannot be "
            "encoded frame by frame; adapt the encoder with `temporal_embedding: false`"
        )
    if reduction is not None and any(parts.offsets.by_head):
        raise VidflowError(
            "heads of the encoder's weights read earlier frames, whose tokens are reduced otherwise; encode the stream "
            "frame by frame without a token reducer"
        )


def walk_clips(
    vit: TimmVit,
    images: Float[Tensor, "frames 3 H W"],
    *,
    depths: Sequence[int],
    normalize: bool,
    parts: ClipParts,
    num_frames: int,
) -> list[Float[Tensor, "frames S D"]]:
    """Run the blocks up to the last tapped one, and return the sequence after each tapped block.

    Args:
        vit: A timm model in evaluation mode.
        images: Normalised images of whole clips.
        depths: Indices of the tapped blocks, from 0, ascending.
        normalize: Whether to apply the model's final norm to each.
        parts: What joins the frames.
        num_frames: Frames of a clip.
    """
    num_clips = images.shape[0] // num_frames
    tokens, rope = embed_patches(vit, images, added=parts.added(0, num_clips))
    taps = []
    for index in range(depths[-1] + 1):
        if index and (added := parts.added(index, num_clips)) is not None:
            tokens = tokens + added
        if index in parts.inti:
            clips = parts.inti[index](tokens.unflatten(0, (num_clips, num_frames)))
            tokens, num_frames = clips.flatten(0, 1), clips.shape[1]
        if parts.offsets.act_at(index):
            read = parts.offsets.reader(num_frames)
            tokens = run_spelled_block(vit, index, tokens, rope, read=read)
        else:
            tokens = run_block(vit, index, tokens, rope)
        if index in depths:
            taps.append(vit.norm(tokens) if normalize else tokens)
    return taps


__all__ = ["ClipParts", "check_joint", "check_streamable", "walk_clips"]
