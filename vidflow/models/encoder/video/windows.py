"""Encode clips of several windows: a video transformer sees a fixed number of frames, a clip may have a multiple of it.

Axes: B clips, V windows of a clip, T frames of a window, Y and X pixels, F output frames of a window, M tokens of a
window, P prefix tokens, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.clip_encoder import TokenArrays
from vidflow.models.encoder.video.encoded import EncodedClips
from vidflow.models.encoder.video.encoder import VideoEncoder


class WindowedEncoder:
    """A `ClipEncoder` that cuts clips into windows, side by side, and encodes each of them alone.

    Attributes:
        video: The video transformer.
    """

    is_causal = False

    def __init__(self, video: VideoEncoder) -> None:
        """Keep the model; see `ClipEncoder` for the attributes."""
        self.video = video
        self.embed_dim, self.grid, self.num_prefix_tokens = video.embed_dim, video.grid, video.num_prefix_tokens
        self.depths = [video.model.shape.depth - 1]
        self.img_size = video.geometry.img_size
        self.num_frames: int | None = video.num_frames
        self.weights_sha256 = video.weights_sha256

    def encode(self, frames: UInt8[Tensor, "B VT Y X 3"]) -> "EncodedWindows":
        """Encode clips that already have the encoder's size.

        Raises:
            VidflowError: The clips are not a whole number of windows, or have another size.
        """
        num_windows = count_windows(frames.shape[1], self.video.num_frames, name=self.video.recipe.family)
        windows = frames.unflatten(1, (num_windows, -1)).flatten(0, 1)
        return EncodedWindows(self.video.encode(windows), num_windows)

    def output_frames(self, num_frames: int) -> list[int]:
        """Return the last input frame of each output frame."""
        starts = range(0, num_frames, self.video.num_frames)
        return [start + frames[-1] for start in starts for frames in self.video.geometry.frame_of]

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the encoder's output, as JSON-ready values."""
        recipe = self.video.recipe
        return {"name": " ".join(filter(None, (recipe.family, recipe.size))), **self.video.describe()}


@dataclass(frozen=True, slots=True)
class EncodedWindows:
    """The tokens of a batch of clips.

    Attributes:
        encoded: Tokens of the windows, those of one clip after another.
        num_windows: Windows of a clip, V.
    """

    encoded: EncodedClips
    num_windows: int

    def clips(self) -> Iterator[TokenArrays]:
        """Copy the tokens of each clip to the host, in fp16."""
        encoded, num_frames = self.encoded, self.encoded.grid[0]
        tokens, prefix = (part.to(torch.float16).cpu().numpy() for part in (encoded.tokens, encoded.prefix))
        sizes = None if encoded.sizes is None else encoded.sizes.float().cpu().numpy()
        assignment = None if encoded.assignment is None else encoded.assignment.cpu().numpy()
        counts = np.zeros((self.num_windows, num_frames), np.int32)
        if encoded.by_frame:
            counts[:] = tokens.shape[1] // num_frames
        else:
            counts[:, 0] = tokens.shape[1]
        for start in range(0, len(tokens), self.num_windows):
            part = slice(start, start + self.num_windows)
            yield TokenArrays(
                tokens=tokens[part].reshape(-1, tokens.shape[2]),
                prefix=prefix[part].repeat(num_frames, axis=0),
                counts=counts.reshape(-1, 1),
                sizes=None if sizes is None else sizes[part].ravel(),
                assignment=None if assignment is None else self._number_rows(assignment[part], tokens.shape[1]),
            )

    def _number_rows(
        self, assignment: Int64[np.ndarray, "V patches"], num_tokens: int
    ) -> Int64[np.ndarray, "VF 1 frame_patches"]:
        """Turn token numbers within a window into numbers within the clip; -1 stays -1."""
        before = np.arange(self.num_windows)[:, None] * num_tokens
        rows = np.where(assignment < 0, -1, assignment + before)
        return rows.reshape(self.num_windows * self.encoded.grid[0], 1, -1)


def count_windows(num_frames: int, window: int, *, name: str) -> int:
    """Return the number of windows in a clip.

    Raises:
        VidflowError: The clip is not a whole number of windows.
    """
    if num_frames % window or num_frames == 0:
        raise VidflowError(
            f"video.sampling.num_frames is {num_frames}, but {name} sees {window} frames at a time; wanted {window} or "
            "a multiple of it"
        )
    return num_frames // window


__all__ = ["EncodedWindows", "WindowedEncoder", "count_windows"]
