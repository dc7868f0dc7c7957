"""A frozen video transformer: clips in, tokens or logits out.

Axes: B clips, T input frames, Y and X pixels, F output frames, H and W the grid, D width, K classes.
"""

import copy
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vidflow.models.encoder.video.cost import count_macs, tokens_per_block
from vidflow.models.encoder.video.encoded import EncodedClips
from vidflow.models.encoder.video.loaded import LoadedModel
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.encoder.video.state import ClipTokens
from vidflow.models.encoder.video.walk import ClipWalk
from vidflow.models.reduction.seeds import content_seeds
from vidflow.models.tensor_checks import state_sha256


class VideoEncoder:
    """A video transformer that is never trained; it turns uint8 clips into patch tokens of its last block.

    Attributes:
        recipe: What it was built from.
        model: The loaded model.
        geometry: The clips it wants, and their normalisation.
        num_frames: Input frames T that it insists on.
        num_output_frames: Output frames F.
        fps: Frames per second that the weights were trained on, or `uniform`: middles of equal segments of the video.
        grid: Patches per column and per row of an output frame.
        embed_dim: Width D of a token.
        num_prefix_tokens: Class tokens of a clip.
        is_causal: Never: every frame sees the whole clip.
        tokens_per_block: Patch tokens of a clip before the first block and after each.
        macs: Multiply-accumulates per clip, with matching and with the classifier if there is one.
        weights_sha256: Digest of the float32 weights as loaded, before any cast.
    """

    is_causal = False

    def __init__(
        self, *, recipe: VideoRecipe, model: LoadedModel, walk: ClipWalk, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Wrap a loaded and tested model; `build_video_encoder` makes one."""
        self.recipe, self.model, self.geometry = recipe, model, model.geometry
        self.num_frames, self.fps = self.geometry.num_frames, self.geometry.fps
        self.num_output_frames, *side = self.geometry.grid
        self.grid = (side[0], side[1])
        self.embed_dim, self.num_prefix_tokens = model.shape.embed_dim, model.shape.num_prefix
        self.weights_sha256 = state_sha256(model.backbone.model.state_dict())
        self.device, self.dtype = device, dtype
        model.backbone.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._walk_with(walk)

    def _walk_with(self, walk: ClipWalk) -> None:
        self.walk = walk
        self.tokens_per_block = tuple(tokens_per_block(self.model.shape, walk.reducer))
        self.macs = count_macs(self.model.shape, walk.reducer)

    def with_walk(self, walk: ClipWalk) -> Self:
        """Return the same model on the same weights with another walk; `with_reduction` makes one."""
        other = copy.copy(self)
        other._walk_with(walk)
        return other

    @torch.inference_mode()
    def encode(self, frames: UInt8[Tensor, "B T Y X 3"]) -> EncodedClips:
        """Encode clips that already have the encoder's number of frames and size.

        Raises:
            VidflowError: They do not; some libraries would run on them without an error.
        """
        return self._pack(self._run(frames))

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the encoder's output, as JSON-ready values."""
        reducer = self.walk.reducer
        geometry = asdict(self.geometry)
        is_ours = self.model.backbone.stock is None
        return {
            "family": self.recipe.family,
            "weights": self.recipe.weights,
            "weights_sha256": self.weights_sha256,
            "settings": dict(self.model.settings),
            **{key: list(value) if isinstance(value, tuple) else value for key, value in geometry.items()},
            "grid": list(self.grid),
            "embed_dim": self.embed_dim,
            "num_prefix_tokens": self.num_prefix_tokens,
            "attention": self.recipe.attention,
            "dtype": str(self.dtype).removeprefix("torch."),
            "reduction": None if reducer is None else {"kind": type(reducer).__name__, **asdict(reducer)},
            "torch": version("torch"),
            **({} if is_ours else {"transformers": version("transformers")}),
        }

    def _run(self, frames: UInt8[Tensor, "B T Y X 3"]) -> ClipTokens:
        self.geometry.check(frames, name=self.recipe.family)
        frames = frames.to(self.device, non_blocking=True)
        reducer = self.walk.reducer
        seeds = content_seeds(frames) if reducer is not None and reducer.is_random else None
        return self.walk.run(self.geometry.normalise(frames, self.dtype), seeds=seeds)

    def _pack(self, state: ClipTokens) -> EncodedClips:
        is_reduced = self.walk.reducer is not None
        return EncodedClips(
            tokens=state.patches,
            prefix=state.prefix,
            grid=self.geometry.grid,
            frame_of=self.geometry.frame_of,
            by_frame=not is_reduced or self.walk.groups.scope in ("frame", "tube"),
            sizes=state.sizes if is_reduced else None,
            assignment=state.assignment if is_reduced else None,
        )


class VideoClassifier(VideoEncoder):
    """A video encoder with the classifier of its checkpoint; `build_video_classifier` makes one.

    Attributes:
        class_names: Names of the classes of each head, in the order of the logits. The head is `class`; EPIC-KITCHENS
            models have `verb` and `noun`.
    """

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The names by head."""
        return dict(self.model.class_names)

    @torch.inference_mode()
    def classify(self, frames: UInt8[Tensor, "B T Y X 3"]) -> dict[str, Float[Tensor, "B K"]]:
        """Return the logits of each head in float32; clips are as for `encode`."""
        return self.classify_with_tokens(frames)[0]

    @torch.inference_mode()
    def classify_with_tokens(
        self, frames: UInt8[Tensor, "B T Y X 3"]
    ) -> tuple[dict[str, Float[Tensor, "B K"]], EncodedClips]:
        """Return the logits of each head and the tokens that they were read from, from one run."""
        state = self._run(frames)
        assert self.model.backbone.classify is not None
        logits = self.model.backbone.classify(state.tokens)
        return {head: values.float() for head, values in logits.items()}, self._pack(state)


__all__ = ["VideoClassifier", "VideoEncoder"]
