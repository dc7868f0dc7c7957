"""Drop patches that do not change from frame to frame.

Axes: B clips, T frames, N patches of a frame, H and W the grid, p side of a patch in pixels, D width.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.reduction.assignment import Assignment, group_tokens
from vidflow.models.reduction.reducer import InputReducer, PostReducer

Reference = Literal["previous", "last_kept"]
"""What a patch is compared with.

Choices:
    previous: The patch at the same place in the previous frame.
    last_kept: The last kept patch at the same place, so that slow change is detected too; needs `threshold`.
"""


def budget(num_frames: int, num_patches: int, *, prune: float) -> int:
    """Return how many patches of a clip are kept: at least the number in one frame.

    Source: EVS, Efficient Video Sampling (NVIDIA, 2025).
    """
    return max(num_patches, int(num_frames * num_patches * (1 - prune)))


def most_changed(change: Float[Tensor, "B T N"], *, prune: float) -> Bool[Tensor, "B T N"]:
    """Mark the patches of a clip that changed most; all patches of the first frame count as changed.

    Args:
        change: Change of each patch against its reference.
        prune: Fraction of the clip's patches to drop; at least the number of patches in one frame is kept.

    Source: EVS, Efficient Video Sampling (NVIDIA, 2025): one stable sort over the whole clip.
    """
    batch, num_frames, num_patches = change.shape
    num_kept = budget(num_frames, num_patches, prune=prune)
    change = torch.cat([torch.full_like(change[:, :1], torch.inf), change[:, 1:]], dim=1).flatten(1)
    order = change.argsort(dim=1, descending=True, stable=True)[:, :num_kept]
    kept = torch.zeros(change.shape, dtype=torch.bool, device=change.device).scatter_(1, order, True)
    return kept.view(batch, num_frames, num_patches)


def changed_since_kept(
    values: Float[Tensor, "B T N C"], *, threshold: float, kind: Literal["l1", "cosine"]
) -> Bool[Tensor, "B T N"]:
    """Mark the patches that differ from the last kept patch at their place by more than a threshold.

    Comparing with the last kept patch, not with the previous frame, detects slow drift.
    """
    reference = values[:, 0]
    kept = [torch.ones_like(reference[..., 0], dtype=torch.bool)]
    for frame in values.unbind(1)[1:]:
        changed = difference(frame, reference, kind=kind) > threshold
        reference = torch.where(changed.unsqueeze(-1), frame, reference)
        kept.append(changed)
    return torch.stack(kept, dim=1)


def difference(
    values: Float[Tensor, "... C"], reference: Float[Tensor, "... C"], *, kind: Literal["l1", "cosine"]
) -> Float[Tensor, "..."]:
    """Return the mean absolute difference, or one minus the cosine."""
    match kind:
        case "l1":
            return (values - reference).abs().mean(-1)
        case "cosine":
            return 1 - F.cosine_similarity(values.float(), reference.float(), dim=-1)
        case _:
            assert_never(kind)


def patch_pixels(frames: UInt8[Tensor, "B T Y X 3"], patch_size: int) -> Float[Tensor, "B T N C"]:
    """Cut frames into patches in raster order; values in [0, 1]."""
    batch, num_frames, height, width, _ = frames.shape
    cut = frames.view(batch, num_frames, height // patch_size, patch_size, width // patch_size, patch_size, 3)
    return cut.permute(0, 1, 2, 4, 3, 5, 6).flatten(4).flatten(2, 3).float() / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSelection:
    """Which patches of a clip to keep, by change.

    Attributes:
        prune: Fraction of the clip's patches to drop, in [0, 1): a budget per clip.
        threshold: Instead: change above which a patch is kept. The change is the mean absolute difference of pixels in
            [0, 1], or one minus the cosine of features.
        reference: What a patch is compared with.
    """

    prune: float | None = None
    threshold: float | None = None
    reference: Reference = "previous"

    def __post_init__(self) -> None:
        if (self.prune is None) == (self.threshold is None):
            raise VidflowError(f"reducer 'evs' wants one of prune and threshold, got {self.prune} and {self.threshold}")
        if self.prune is not None and not 0 <= self.prune < 1:
            raise VidflowError(f"reducer 'evs' has prune {self.prune}; wanted a fraction from 0 to below 1")
        if self.reference == "last_kept" and self.threshold is None:
            raise VidflowError("reducer 'evs' with reference 'last_kept' wants a threshold, not a fraction to prune")

    def kept(self, values: Float[Tensor, "B T N C"], *, kind: Literal["l1", "cosine"]) -> Bool[Tensor, "B T N"]:
        """Mark the patches to keep."""
        if self.reference == "last_kept":
            assert self.threshold is not None
            return changed_since_kept(values, threshold=self.threshold, kind=kind)
        change = difference(values[:, 1:], values[:, :-1], kind=kind)
        change = torch.cat([torch.full_like(values[:, :1, :, 0], torch.inf, dtype=change.dtype), change], dim=1)
        if self.prune is not None:
            return most_changed(change, prune=self.prune)
        assert self.threshold is not None
        return change > self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatic(InputReducer):
    """Drop patches whose pixels do not change, before the encoder.

    Attributes:
        selection: Which patches to keep.

    Source: EVS (NVIDIA, 2025), pixel form; with a threshold, Run-Length Tokenization (Choudhury et al., NeurIPS 2024)
    with tubelets of one frame, published threshold 0.1. Kept patches attend within their frame.
    """

    selection: StaticSelection

    @property
    def is_even(self) -> bool:
        """Whether nothing is dropped."""
        return self.selection.prune == 0

    def kept(self, frames: UInt8[Tensor, "B T Y X 3"], *, patch_size: int) -> Bool[Tensor, "B T N"]:
        """Mark the patches that go through the encoder."""
        return self.selection.kept(patch_pixels(frames, patch_size), kind="l1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostStatic(PostReducer):
    """Drop patches whose features do not change; a dropped patch belongs to the last kept patch at its place.

    Attributes:
        selection: Which patches to keep.

    Source: EVS (NVIDIA, 2025), embedding form.
    """

    selection: StaticSelection

    @property
    def is_even(self) -> bool:
        """Whether nothing is dropped."""
        return self.selection.prune == 0

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Assign every patch to the last kept patch at its place; a row's size is the number of frames it covers."""
        kept = self.selection.kept(tokens.flatten(2, 3), kind="cosine")
        # With a budget all clips keep equally many patches, with a threshold they do not.
        prune = self.selection.prune
        num_rows = None if prune is None else budget(kept.shape[1], kept.shape[2], prune=prune)
        return group_tokens(last_kept(kept), kept.flatten(1), combine="owner", num_rows=num_rows)


def last_kept(kept: Bool[Tensor, "B T N"]) -> Int[Tensor, "B TN"]:
    """Return for every patch of a clip the index of the last kept patch at its place, itself included."""
    num_frames, num_patches = kept.shape[1:]
    frames = torch.arange(num_frames, device=kept.device).view(1, -1, 1)
    latest = torch.where(kept, frames, -1).cummax(dim=1).values
    index = latest * num_patches + torch.arange(num_patches, device=kept.device)
    return torch.where(latest >= 0, index, -1).flatten(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostDycoke(PostReducer):
    """Drop the most similar patches in three of every four frames; each repeats the same place of an earlier frame.

    Attributes:
        prune: Fraction of patches pruned from each frame of a window of four except its first, in [0, 1].

    Source: DyCoke (Tao et al., CVPR 2025), temporal token merging, whose code drops the pruned tokens: it compares the
    second frame with the first, the fourth with the third, then the third with the first. Differs: the last window is
    pruned like all others.
    """

    prune: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.prune <= 1:
            raise VidflowError(f"reducer 'dycoke' has prune {self.prune}; wanted a fraction from 0 to 1")

    @property
    def is_even(self) -> bool:
        """Whether nothing is dropped."""
        return self.prune == 0

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Assign pruned patches to the patch they repeat."""
        num_frames = tokens.shape[1]
        values = tokens.flatten(2, 3)
        num_patches = values.shape[2]
        frames = torch.arange(num_frames, device=tokens.device)
        # Odd frames repeat the frame before; the third of a window repeats the first.
        sources = torch.where(frames % 4 == 2, frames - 2, frames - frames % 2)
        similarity = F.cosine_similarity(values.float(), values[:, sources].float(), dim=-1)
        num_pruned = int(self.prune * num_patches)
        order = similarity.argsort(dim=2, descending=True, stable=True)[:, :, :num_pruned]
        likest = torch.zeros(similarity.shape, dtype=torch.bool, device=tokens.device).scatter_(2, order, True)
        pruned = likest & (sources != frames).view(1, -1, 1)
        place = torch.arange(num_patches, device=tokens.device)
        itself = frames.unsqueeze(1) * num_patches + place
        source = sources.unsqueeze(1) * num_patches + place
        group = torch.where(pruned, source, itself).flatten(1)
        # The source may itself repeat the first frame of the window: a second lookup finds its owner.
        group = group.gather(1, group)
        num_rows = num_frames * num_patches - num_pruned * int((torch.arange(num_frames) % 4 != 0).sum())
        return group_tokens(group, ~pruned.flatten(1), combine="owner", num_rows=num_rows)


__all__ = [
    "InputStatic",
    "PostDycoke",
    "PostStatic",
    "Reference",
    "StaticSelection",
    "changed_since_kept",
    "last_kept",
    "most_changed",
    "patch_pixels",
]
