"""Encode coordinates for the network, and compute the geometry of tracks, boxes and rotations.

Axes: B clips, O tracks, T frames, d coordinates of a query or track, F frequencies, H hidden width, P width of the
readout.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vidflow.models.precision import at_least_single


class FourierEncoding(nn.Module):
    """Sines, then cosines, of pi 2^k x for k = 0 .. F - 1, coordinate after coordinate.

    Computed in at least single precision: at k = 15 the rounding of a half-precision coordinate is many periods.

    Source: Mildenhall et al. 2020, NeRF (arXiv 2003.08934), section 5.1; F = 16 in 4DS and Orlova et al. 2026.
    """

    freqs: Tensor

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2.0 ** torch.arange(num_frequencies))

    def forward(self, coordinates: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 2*d*F"]:
        """Encode coordinates in [0, 1]."""
        angles = math.pi * at_least_single(coordinates)[..., None] * at_least_single(self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class QueryEncoder(nn.Module):
    """Encode coordinates as a query vector: Fourier encoding, two-layer MLP, projection."""

    def __init__(self, num_coordinates: int, width: int, *, hidden_dim: int, num_frequencies: int) -> None:
        super().__init__()
        self.fourier = FourierEncoding(num_frequencies)
        num_inputs = 2 * num_coordinates * num_frequencies
        self.mlp = nn.Sequential(nn.Linear(num_inputs, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim))
        self.to_query = nn.Linear(hidden_dim, width)

    def forward(self, coordinates: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch P"]:
        """Encode coordinates in [0, 1]."""
        encoded = self.fourier(coordinates).to(self.to_query.weight.dtype)
        query: Tensor = self.to_query(self.mlp(encoded))
        return query


def hold(tracks: Float[Tensor, "B O T d"], frames: Int[Tensor, "B O"]) -> Float[Tensor, "B O T d"]:
    """Return tracks that stay at their position in one frame per track."""
    return at_frames(tracks, frames)[:, :, None].expand_as(tracks)


def at_frames(tracks: Float[Tensor, "B O T d"], frames: Int[Tensor, "B O"]) -> Float[Tensor, "B O d"]:
    """Return the position of each track at its own frame."""
    return tracks.gather(2, frames[..., None, None].expand(-1, -1, 1, tracks.shape[-1]))[:, :, 0]


def to_corners(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Turn center x, center y, width, height into left, top, right, bottom."""
    center, size = boxes.chunk(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def to_centers(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Turn left, top, right, bottom into center x, center y, width, height."""
    low, high = boxes.chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Return the areas of boxes given by corners; the area of an inverted box is 0."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def box_overlap(
    first: Float[Tensor, "*batch 4"], second: Float[Tensor, "*batch 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return IoU in [0, 1] and generalized IoU in [-1, 1] of boxes given by corners, pair by pair.

    Source: Rezatofighi et al. 2019, Generalized Intersection over Union (arXiv 1902.09630), algorithm 1.
    """
    smallest = torch.finfo(first.dtype).tiny
    common = torch.cat([torch.maximum(first, second)[..., :2], torch.minimum(first, second)[..., 2:]], dim=-1)
    hull = torch.cat([torch.minimum(first, second)[..., :2], torch.maximum(first, second)[..., 2:]], dim=-1)
    intersection = box_area(common)
    union = box_area(first) + box_area(second) - intersection
    iou = intersection / union.clamp(min=smallest)
    outer = box_area(hull)
    return iou, iou - (outer - union) / outer.clamp(min=smallest)


def rotation_matrix(columns: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Orthonormalise two columns and complete them to a rotation.

    Source: Zhou et al. 2019 (arXiv 1812.07035), section 4.2.
    """
    first = functional.normalize(columns[..., :3], dim=-1)
    second = columns[..., 3:]
    second = functional.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)
