"""The frozen encoder: it turns decoded frames into tokens of the tapped depths.

Axes: B frames, H and W pixels, K tapped depths, N patch tokens, P prefix tokens (class token and registers), D width.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.architecture import patch_size_of, resolve_depths
from vidflow.models.encoder.clip_parts import ClipParts, check_joint, check_streamable, walk_clips
from vidflow.models.encoder.encoded import EncodedFrames, pack_taps
from vidflow.models.encoder.pruned_frames import encode_pruned, shrink
from vidflow.models.encoder.reduced_vit import walk_reduced
from vidflow.models.encoder.streamed import StreamState, init_stream, step_stream
from vidflow.models.encoder.vit import TimmVit, walk_blocks
from vidflow.models.reduction.build import Reducer
from vidflow.models.reduction.controls import InputLowerResolution, covering_patches
from vidflow.models.reduction.in_block import BlockReducer
from vidflow.models.reduction.reducer import InputReducer
from vidflow.models.reduction.seeds import content_seeds
from vidflow.models.tensor_checks import state_sha256


class FrozenEncoder:
    """A timm vision transformer that is never trained; it turns uint8 frames into patch tokens of the tapped depths.

    Attributes:
        vit: The timm model, in evaluation mode, on its device and in its dtype.
        embed_dim: Width D of a token.
        patch_size: Side of a square patch in pixels.
        num_prefix_tokens: Class token and registers, P.
        depth: Number of blocks of the model.
        grid: Patches per column and per row.
        depths: Tapped blocks, from 0, ascending.
        weights_sha256: Digest of the float32 weights as loaded, before any cast.
        mean: Mean per channel of frames scaled to `input_range`.
        std: Standard deviation per channel, likewise.
        input_range: Range that pixel values 0 to 255 are scaled to before mean and standard deviation.
        num_frames: Frames that a clip must have; None if any number is fine.
        is_causal: Whether a stream can be encoded frame by frame.
        parts: What joins the frames of a clip; None if frames do not see one another.
    """

    input_range = (0.0, 1.0)

    def __init__(
        self,
        *,
        vit: TimmVit,
        name: str,
        weights: str,
        img_size: int,
        depths: Sequence[int] | None,
        normalize_depths: bool,
        device: torch.device,
        dtype: torch.dtype,
        mean: Sequence[float],
        std: Sequence[float],
        reduction: Reducer | None = None,
        parts: ClipParts | None = None,
    ) -> None:
        """Wrap a built and loaded model; `build_encoder` builds, loads and wraps one.

        Raises:
            VidflowError: The reducer cannot act on an encoder whose frames see one another.
        """
        self.name, self.weights, self.img_size = name, weights, img_size
        self.normalize_depths = normalize_depths
        self.embed_dim = int(vit.embed_dim)
        self.patch_size = patch_size_of(vit)
        self.num_prefix_tokens = int(vit.num_prefix_tokens)
        self.depth = len(vit.blocks)
        self.grid = (img_size // self.patch_size, img_size // self.patch_size)
        self.reduction = reduction
        self.depths = resolve_depths(depths, num_blocks=self.depth)
        self.mean, self.std = tuple(mean), tuple(std)
        self.weights_sha256 = state_sha256({**vit.state_dict(), **({} if parts is None else parts.state())})
        self.device, self.dtype = device, dtype
        if parts is not None:
            check_joint(reduction, interpolates=bool(parts.inti))
        self.parts = None if parts is None else parts.to(device=device, dtype=dtype)
        self.num_frames = None if parts is None else parts.num_frames
        self.is_causal = parts is None or parts.is_causal
        self.vit = _cast(vit, device=device, dtype=dtype).eval().requires_grad_(False)
        # Pixels are 0 to 255 here: fold the division by 255 into mean and standard deviation.
        self._mean = torch.tensor(self.mean, device=device) * 255
        self._std = torch.tensor(self.std, device=device) * 255

    @torch.inference_mode()
    def __call__(self, frames: UInt8[Tensor, "B H W 3"], *, num_frames: int | None = None) -> EncodedFrames:
        """Encode frames that already have the encoder's size.

        Args:
            frames: RGB frames of one clip after another.
            num_frames: Frames of a clip. Only heads that read other frames and reducers that compare frames before the
                encoder use it; None is 1, and is refused where frames see one another.

        Raises:
            ValueError: The frames are not uint8 of the size the encoder was built for, or not whole clips.
            VidflowError: Clips have another number of frames than the encoder's temporal embedding.
        """
        if num_frames is None and self.parts is not None:
            raise ValueError("the frames of a clip see one another in this encoder; say how many a clip has")
        num_frames = num_frames or 1
        if self.num_frames not in (None, num_frames):
            raise VidflowError(
                f"clips have {num_frames} frames, but {self.weights} was trained with a temporal embedding of "
                f"{self.num_frames}; set video.sampling.num_frames to that"
            )
        frames = self._checked(frames)
        if frames.shape[0] % num_frames:
            raise ValueError(f"{frames.shape[0]} frames are not a whole number of clips of {num_frames} frames")
        reduction = self.reduction
        if reduction is None:
            return self._encode(self.images(frames), num_frames)
        if isinstance(reduction, InputLowerResolution):
            return self._encode_small(frames, num_frames)
        if reduction.place == "input":
            return self._encode_pruned(frames, reduction, num_frames)
        assert reduction.place == "block", reduction.place
        seeds = content_seeds(frames) if reduction.is_random else None
        return self._encode_reduced(self.images(frames), reducer=reduction, seeds=seeds, num_frames=num_frames)

    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> EncodedFrames:
        """Encode clips that already have the encoder's size; see `__call__`."""
        num_frames = frames.shape[1]
        encoded = self(frames.flatten(0, 1), num_frames=num_frames)
        return replace(encoded, num_frames=len(self.output_frames(num_frames)))

    def init_stream(self, batch_size: int) -> StreamState:
        """Return the state of streams before their first frame; it is empty where frames do not see one another.

        Raises:
            VidflowError: A stream cannot be encoded frame by frame.
        """
        if self.parts is None:
            return ()
        check_streamable(self.parts, self.reduction)
        if not any(self.parts.offsets.by_head):
            return ()
        return init_stream(self.vit, self.parts.offsets, last=self.depths[-1], batch_size=batch_size)

    @torch.inference_mode()
    def step(self, frames: UInt8[Tensor, "B H W 3"], state: StreamState) -> tuple[EncodedFrames, StreamState]:
        """Encode the next frame of each stream as `encode` does in a clip of all its frames; `state` stays as it is."""
        if self.parts is None or not any(self.parts.offsets.by_head):
            return self(frames, num_frames=1), state
        taps, state = step_stream(
            self.vit,
            self.images(self._checked(frames)),
            state,
            depths=self.depths,
            normalize=self.normalize_depths,
            offsets=self.parts.offsets,
        )
        return self._pack(taps), state

    def output_frames(self, num_frames: int) -> list[int]:
        """Return the last input frame that each output frame stands for: itself, but behind an InTI layer."""
        group = 1 if self.parts is None else self.parts.frames_per_output
        return [min(start + group, num_frames) - 1 for start in range(0, num_frames, group)]

    def images(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
        """Normalise in float32, then cast to the encoder's precision."""
        images = (frames.float() - self._mean) / self._std
        return images.permute(0, 3, 1, 2).to(self.dtype)

    def _encode(self, images: Float[Tensor, "B 3 H W"], num_frames: int) -> EncodedFrames:
        taps = (
            walk_blocks(self.vit, images, depths=self.depths, normalize=self.normalize_depths)
            if self.parts is None
            else walk_clips(
                self.vit,
                images,
                depths=self.depths,
                normalize=self.normalize_depths,
                parts=self.parts,
                num_frames=num_frames,
            )
        )
        return self._pack(taps)

    def _checked(self, frames: UInt8[Tensor, "B H W 3"]) -> UInt8[Tensor, "B H W 3"]:
        """Return frames of the right size on the device."""
        wanted = (self.img_size, self.img_size, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != wanted:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, wanted uint8 (B, {', '.join(map(str, wanted))})"
            )
        return frames.to(self.device, non_blocking=True)

    def _pack(self, taps: Sequence[Float[Tensor, "B S D"]]) -> EncodedFrames:
        tokens = torch.stack([tap[:, self.num_prefix_tokens :] for tap in taps], dim=1)
        return EncodedFrames(tokens=tokens, prefix=taps[-1][:, : self.num_prefix_tokens])

    def _encode_reduced(
        self,
        images: Float[Tensor, "B 3 H W"],
        *,
        reducer: BlockReducer | None = None,
        seeds: Int[Tensor, " B"] | None = None,
        kept: Bool[Tensor, "B N"] | None = None,
        num_frames: int = 1,
    ) -> EncodedFrames:
        taps = walk_reduced(
            self.vit,
            images,
            depths=self.depths,
            normalize=self.normalize_depths,
            reducer=reducer,
            seeds=seeds,
            kept=kept,
            parts=self.parts,
            num_frames=num_frames,
        )
        return pack_taps(taps, num_prefix=self.num_prefix_tokens)

    def _encode_pruned(self, frames: UInt8[Tensor, "B H W 3"], reducer: InputReducer, num_frames: int) -> EncodedFrames:
        clips = frames.view(-1, num_frames, *frames.shape[1:])
        kept = reducer.kept(clips, patch_size=self.patch_size).flatten(0, 1)

        def encode(index: Int[Tensor, " b"], some: Bool[Tensor, "b N"] | None) -> EncodedFrames:
            return self._encode_reduced(self.images(frames[index]), kept=some)

        return encode_pruned(encode, kept, num_frames=num_frames)

    def _encode_small(self, frames: UInt8[Tensor, "B H W 3"], num_frames: int) -> EncodedFrames:
        """Encode the frames at a lower resolution; each patch is assigned the larger patch that covers its centre."""
        small_side = int(self.vit.patch_embed.grid_size[0])
        images = shrink(self.images(frames).float(), small_side * self.patch_size).to(self.dtype)
        encoded = self._encode(images, num_frames)
        patches = covering_patches(self.grid[0], small_side, self.device)
        sizes = torch.bincount(patches, minlength=small_side**2).float()
        batch, num_depths, num_tokens = encoded.tokens.shape[:3]
        return replace(
            encoded,
            sizes=sizes.expand(batch, num_depths, -1),
            assignment=patches.expand(batch, num_depths, -1),
            counts=torch.full((batch, num_depths), num_tokens, device=self.device),
        )

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the encoder's output, as JSON-ready values."""
        return {
            "name": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "grid": list(self.grid),
            "embed_dim": self.embed_dim,
            "num_prefix_tokens": self.num_prefix_tokens,
            "depth": self.depth,
            "depths": self.depths,
            "normalize_depths": self.normalize_depths,
            "mean": list(self.mean),
            "std": list(self.std),
            "input_range": list(self.input_range),
            "dtype": str(self.dtype).removeprefix("torch."),
            "reduction": _describe_reduction(self.reduction),
            **({} if self.parts is None else {"clip_parts": self.parts.describe()}),
            "timm": version("timm"),
            "torch": version("torch"),
        }


def _describe_reduction(reduction: Reducer | None) -> dict[str, Any] | None:
    if reduction is None:
        return None
    assert is_dataclass(reduction)
    return {"kind": type(reduction).__name__, **asdict(reduction)}


def _cast(vit: TimmVit, *, device: torch.device, dtype: torch.dtype) -> TimmVit:
    """Move and cast the model, but keep the angles of a rotary embedding in float32, as timm computes them."""
    rope = copy.deepcopy(getattr(vit, "rope", None))
    vit = vit.to(device=device, dtype=dtype)
    if rope is not None:
        vit.rope = rope.to(device)
    return vit
