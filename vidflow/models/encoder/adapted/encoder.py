"""An image encoder that is trained in a few places: adapters, heads that read other frames, frames that become one.

Axes: B clips, T frames, F output frames, H and W pixels, S tokens of a frame (P prefix tokens, then N patch tokens),
D width, K tapped depths.
"""

import copy
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidflow.config.schema import Adaptation, AdapterPlace
from vidflow.models.encoder.adapted.adapter import LinearAdapter
from vidflow.models.encoder.clip_blocks import HeadOffsets, run_spelled_block
from vidflow.models.encoder.frozen import FrozenEncoder
from vidflow.models.encoder.inti_reconstructed import IntiReconstructed
from vidflow.models.encoder.vit import embed_patches, rotary_embedding, run_block


class EncodedBatch(NamedTuple):
    """Tokens of a batch of clips, as `vidflow.training.batches.Batch` holds them.

    Attributes:
        tokens: Patch tokens of every tapped depth.
        prefix: Class token and registers of the last tapped depth; None if the encoder has none.
    """

    tokens: Float[Tensor, "B F K N D"]
    prefix: Float[Tensor, "B F P D"] | None


class AdaptedEncoder(nn.Module):
    """Trained parts around a frozen timm model; `build_adapted` builds one.

    The parameters, and so the state dict, are the trained parts only: adapters, temporal embedding, InTI layers, and
    the final norm if `normalize`. They are in float32. The frozen model is no submodule: `train()` and `to()` do not
    reach it, so build the encoder on the device where it runs. It computes in the frozen model's precision whatever
    autocast is on outside.

    Attributes:
        frozen: The frozen encoder: `depths`, `grid`, `embed_dim`, `num_prefix_tokens`, `img_size`, `weights_sha256`.
        adaptation: What is trained.
        num_frames: Frames T of a clip that it insists on; None if any number is fine.
        trained_frames: Frames of a clip in training.
        offsets: The frame that each head reads.
        checkpointing: Whether activations inside a trained block are computed again for the gradient instead of kept.
            May be set at any time; it changes no result.
        eager: Whether attention writes out its table instead of using the fused kernel.
    """

    def __init__(
        self, frozen: FrozenEncoder, adaptation: Adaptation, *, num_frames: int, checkpointing: bool = False
    ) -> None:
        """Add untrained parts to an encoder that passed `check_adaptation`; they change nothing but the offsets."""
        super().__init__()
        self.frozen, self.adaptation = frozen, adaptation
        self.trained_frames = num_frames
        self.num_frames = num_frames if adaptation.temporal_embedding else None
        self.offsets = HeadOffsets(tuple(adaptation.offsets), adaptation.first_block)
        self.checkpointing, self.eager = checkpointing, False
        width, rank = frozen.embed_dim, rank_of(adaptation, frozen.embed_dim)
        adapted = range(adaptation.first_block, frozen.depths[-1] + 1) if adaptation.places else ()
        self.adapters = nn.ModuleDict(
            {
                str(index): nn.ModuleDict(
                    {
                        place: LinearAdapter(width, rank, scale=adaptation.scale, dropout=adaptation.dropout)
                        for place in adaptation.places
                    }
                )
                for index in adapted
            }
        )
        self.temporal_embedding = (
            nn.Parameter(torch.zeros(num_frames, width)) if adaptation.temporal_embedding else None
        )
        self.inti_reconstructed = nn.ModuleDict(
            {
                str(after): IntiReconstructed(width, grid=frozen.grid, num_prefix=frozen.num_prefix_tokens)
                for after in adaptation.interpolate_after
            }
        )
        self.norm = copy.deepcopy(frozen.vit.norm).float().requires_grad_() if frozen.normalize_depths else None
        self.to(frozen.device)

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> EncodedBatch:
        """Encode clips of frames that already have the encoder's size, on any device.

        Raises:
            ValueError: The frames are not uint8 of that size, or a clip has another number of frames than required.
        """
        side = self.frozen.img_size
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != (side, side, 3):
            raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}, wanted uint8 (B, T, {side}, {side}, 3)")
        images = self.frozen.images(frames.flatten(0, 1).to(self.frozen.device, non_blocking=True))
        return self.encode_images(images.unflatten(0, frames.shape[:2]))

    def encode_images(self, images: Float[Tensor, "B T 3 H W"]) -> EncodedBatch:
        """Encode clips of normalised images, on the encoder's device."""
        batch, num_frames = images.shape[:2]
        self._check_frames(num_frames)
        images = images.flatten(0, 1)
        first_block = self.adaptation.first_block
        with self._precision():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not first_block):
                added = None if first_block else self._embedding(batch)
                tokens, rope = embed_patches(self.frozen.vit, images, added=added)
                for index in range(min(first_block, self.frozen.depths[-1] + 1)):
                    tokens = run_block(self.frozen.vit, index, tokens, rope)
            return self._walk(tokens, rope, num_frames, is_embedded=not first_block)

    def forward_from(self, stream: Float[Tensor, "B T S D"], first_block: int) -> EncodedBatch:
        """Encode clips from the residual stream that enters a block, which is what the block before it returns.

        Args:
            stream: Prefix tokens, then patch tokens, of every frame, before any final norm; in any precision.
            first_block: The block that it enters: at least 1, and none that is trained may be below it.

        Raises:
            ValueError: A trained block is below it, or the stream has another shape than required.
        """
        if not 1 <= first_block <= self.adaptation.first_block:
            raise ValueError(
                f"the stream enters block {first_block}, wanted 1 to first_block = {self.adaptation.first_block}: "
                "everything below is frozen"
            )
        wanted = (self.frozen.num_prefix_tokens + self.frozen.grid[0] * self.frozen.grid[1], self.frozen.embed_dim)
        if stream.ndim != 4 or tuple(stream.shape[2:]) != wanted:
            raise ValueError(f"the stream is {tuple(stream.shape)}, wanted (B, T, {wanted[0]}, {wanted[1]})")
        self._check_frames(stream.shape[1])
        tokens = stream.flatten(0, 1).to(device=self.frozen.device, dtype=self.frozen.dtype)
        rope = rotary_embedding(self.frozen.vit)
        with self._precision():
            with torch.no_grad():
                for index in range(first_block, self.adaptation.first_block):
                    tokens = run_block(self.frozen.vit, index, tokens, rope)
            return self._walk(tokens, rope, stream.shape[1], is_embedded=False)

    def adapters_of(self, index: int) -> dict[AdapterPlace, LinearAdapter]:
        """Return the adapters of a block by place; none below the first adapted block."""
        if str(index) not in self.adapters:
            return {}
        block: Any = self.adapters[str(index)]
        return dict(block.items())

    def inti_layers(self) -> dict[str, IntiReconstructed]:
        """Return the InTI layers by the number of blocks before them."""
        layers: Any = self.inti_reconstructed
        return dict(layers.items())

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the output but the trained values, as JSON-ready values."""
        return {
            **self.frozen.describe(),
            "adaptation": asdict(self.adaptation),
            "trained_frames": self.trained_frames,
        }

    def output_frames(self, num_frames: int) -> list[int]:
        """Return, for each output frame of a clip of `num_frames`, the last input frame that it stands for."""
        group = 2 ** len(self.inti_reconstructed)
        return [min(start + group, num_frames) - 1 for start in range(0, num_frames, group)]

    def _walk(
        self,
        tokens: Float[Tensor, "frames S D"],
        rope: Float[Tensor, "..."] | None,
        num_frames: int,
        *,
        is_embedded: bool,
    ) -> EncodedBatch:
        """Run the adapted blocks on the stream that enters the first of them, and tap the depths."""
        batch = tokens.shape[0] // num_frames
        if not is_embedded and (added := self._embedding(batch)) is not None:
            tokens = tokens + added
        taps = []
        for index in range(self.adaptation.first_block, self.frozen.depths[-1] + 1):
            if str(index) in self.inti_reconstructed:
                clips = self.inti_reconstructed[str(index)](tokens.unflatten(0, (batch, num_frames)))
                tokens, num_frames = clips.flatten(0, 1), clips.shape[1]
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(self._run_block, index, tokens, rope, num_frames, use_reentrant=False)
            else:
                tokens = self._run_block(index, tokens, rope, num_frames)
            if index in self.frozen.depths:
                taps.append(tokens if self.norm is None else self.norm(tokens))
        num_prefix = self.frozen.num_prefix_tokens
        stacked = torch.stack([tap[:, num_prefix:] for tap in taps], dim=1)
        prefix = taps[-1][:, :num_prefix].unflatten(0, (batch, num_frames)) if num_prefix else None
        return EncodedBatch(stacked.unflatten(0, (batch, num_frames)), prefix)

    def _run_block(
        self, index: int, tokens: Float[Tensor, "frames S D"], rope: Float[Tensor, "..."] | None, num_frames: int
    ) -> Float[Tensor, "frames S D"]:
        """Run a block: timm's own where nothing acts, so that it is exactly the frozen one."""
        adapters = self.adapters_of(index)
        if not adapters and not self.offsets.act_at(index) and not self.eager:
            return run_block(self.frozen.vit, index, tokens, rope)
        return run_spelled_block(
            self.frozen.vit,
            index,
            tokens,
            rope,
            read=self.offsets.reader(num_frames) if self.offsets.act_at(index) else None,
            adapters=adapters,
            eager=self.eager,
        )

    def _embedding(self, batch: int) -> Float[Tensor, "frames 1 D"] | None:
        """Return what is added to all tokens of each frame."""
        if self.temporal_embedding is None:
            return None
        return self.temporal_embedding.to(self.frozen.dtype).repeat(batch, 1).unsqueeze(1)

    def _check_frames(self, num_frames: int) -> None:
        if self.num_frames not in (None, num_frames):
            raise ValueError(f"clips have {num_frames} frames, wanted {self.num_frames}, as the temporal embedding has")

    def _precision(self) -> torch.autocast:
        is_half = self.frozen.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(
            self.frozen.device.type, dtype=self.frozen.dtype if is_half else torch.bfloat16, enabled=is_half
        )


def rank_of(adaptation: Adaptation, embed_dim: int) -> int:
    """Return the rank R of the adapters, at least 1."""
    return max(1, int(adaptation.rank_ratio * embed_dim))


__all__ = ["AdaptedEncoder", "EncodedBatch", "rank_of"]
