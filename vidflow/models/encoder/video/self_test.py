"""Compare our own walk without reduction with the library's forward, before anything relies on it."""

from dataclasses import replace
from importlib.metadata import version

import torch
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.video.cost import ClipShape, count_macs
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.models.encoder.video.walk import ClipWalk

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output if that is above one."""
# A model that costs more multiply-accumulates per clip is compared through this many blocks only.
_LARGE, _FEW_BLOCKS = 20_000_000_000, 2


@torch.inference_mode()
def check_against_library(walk: ClipWalk, geometry: ClipGeometry, shape: ClipShape, *, name: str) -> None:
    """Run a random clip through both.

    Raises:
        VidflowError: They differ, so the installed library computes something else than the one we know.
    """
    stock = walk.backbone.stock
    if stock is None:
        return
    frames, rows, columns = geometry.grid
    if walk.backbone.rotate is not None:
        # Positions are computed, so the shortest clip with two output frames is as good as the whole.
        frames = min(2, frames)
    plain = replace(walk, reducer=None, grid=(frames, rows, columns))
    side = geometry.img_size
    pixels = torch.randn(1, frames * geometry.tubelet, 3, side, side, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(next(walk.backbone.model.parameters()).device)
    depth = min(shape.depth, _FEW_BLOCKS) if count_macs(shape, None) > _LARGE else shape.depth
    ours, theirs = plain.run(pixels, depth=depth).tokens, stock(pixels, depth)
    difference = _difference(ours, theirs)
    if not difference <= TOLERANCE:
        raise VidflowError(
            f"{name}: our walk through {depth} blocks differs from transformers {version('transformers')} by "
            f"{difference:.2g} of its output, wanted at most {TOLERANCE:g}; install the version that vidflow is tested "
            "with: pip install 'vidflow[video]'"
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


__all__ = ["TOLERANCE", "check_against_library"]
