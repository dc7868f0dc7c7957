"""Rotary embeddings of merged tokens, whose positions are between those of the grid.

Axes: N positions on the grid, d width of a head, sincos d sines, then d cosines; B images, M merged tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GridAngles:
    """Angles of a rotary embedding as a linear function of row and column.

    In every rotary embedding of timm's vision transformers the angles are linear in the position. So the angles at any
    position follow from the angle at the corner and the steps to its two neighbours. A step is wrapped to (-pi, pi].
    This is exact if a frequency turns less than half a circle per patch: for DINOv3 with five or more patches per side.
    At positions on the grid the result is always exact.

    Attributes:
        corner: Angle at row 0, column 0.
        row_step: Angle added per row.
        column_step: Angle added per column.
    """

    corner: Float[Tensor, "... 1 d"]
    row_step: Float[Tensor, "... 1 d"]
    column_step: Float[Tensor, "... 1 d"]

    @classmethod
    def of_embedding(cls, rope: Float[Tensor, "... N sincos"], grid: tuple[int, int]) -> "GridAngles":
        """Read the angles from the sines and cosines of a whole grid in raster order."""
        table = rope.float().view(*rope.shape[:-2], *grid, -1)
        corner = _angles(table[..., 0, :1, :])
        below = _angles(table[..., 1, :1, :]) if grid[0] > 1 else corner
        beside = _angles(table[..., 0, 1:2, :]) if grid[1] > 1 else corner
        return cls(corner=corner, row_step=_wrap(below - corner), column_step=_wrap(beside - corner))

    def embed(self, positions: Float[Tensor, "B M 2"]) -> Float[Tensor, "B h M sincos"]:
        """Return sines and cosines at the given rows and columns, with an axis for heads."""
        rows, columns = positions.unsqueeze(1).unsqueeze(-2).unbind(-1)
        angles = self.corner + rows * self.row_step + columns * self.column_step
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_positions(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "N 2"]:
    """Return row and column of every patch in raster order."""
    rows = torch.arange(grid[0], device=device, dtype=torch.float32)
    columns = torch.arange(grid[1], device=device, dtype=torch.float32)
    return torch.cartesian_prod(rows, columns)


def _angles(embedding: Float[Tensor, "... sincos"]) -> Float[Tensor, "... d"]:
    sines, cosines = embedding.chunk(2, dim=-1)
    return torch.atan2(sines, cosines)


def _wrap(angles: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Wrap angles to (-pi, pi]."""
    return torch.atan2(angles.sin(), angles.cos())


__all__ = ["GridAngles", "grid_positions"]
