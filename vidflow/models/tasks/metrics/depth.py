"""Errors of metric depth.

Axes: B clips, T frames, H and W pixels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidflow.models.tasks.metrics.metric import require_counted

# Ground truth outside this range does not count. Source: InternVideo-Next, ScanNet protocol.
MIN_DEPTH_METRES = 0.001
MAX_DEPTH_METRES = 10.0
# A pixel is good if the larger depth divided by the smaller is below this.
_DELTA1 = 1.25


class DepthMetric:
    """Absolute relative error, averaged over pixels and over images, and the share of pixels within a factor 1.25.

    Source: Eigen et al. 2014 (arXiv 1406.2283), section 4; no scale is fitted.
    """

    def __init__(self) -> None:
        self._pixels = torch.zeros(3, dtype=torch.float64)
        self._images = torch.zeros(2, dtype=torch.float64)

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add predicted `depth` (B, T, H, W) in metres, compared with the true `depth`, 0 where unknown."""
        wanted = targets["depth"].cpu().double().flatten(0, 1)
        predicted = predictions["depth"].detach().cpu().double().flatten(0, 1)
        mask = valid_depth(wanted)
        error = ((predicted - wanted).abs() / wanted).where(mask, 0.0)
        ratio = torch.maximum(predicted / wanted, wanted / predicted)
        # A prediction of zero or less is never good, though its ratio to the true depth may be below the limit.
        good = mask & (predicted > 0) & (ratio < _DELTA1)
        num_pixels = mask.sum((1, 2))
        has_any = num_pixels > 0
        per_image = error.sum((1, 2))[has_any] / num_pixels[has_any]
        self._pixels += torch.stack([error.sum(), good.sum().double(), num_pixels.sum().double()])
        self._images += torch.stack([per_image.sum(), has_any.sum().double()])

    def compute(self) -> dict[str, float]:
        """Return `abs_rel` (mean over pixels), `abs_rel_per_image` (mean over the images' means) and `delta1`."""
        error, good, num_pixels = self._pixels.tolist()
        image_error, num_images = self._images.tolist()
        require_counted(num_pixels, "pixel of valid depth")
        return {
            "abs_rel": error / num_pixels,
            "abs_rel_per_image": image_error / num_images,
            "delta1": good / num_pixels,
        }


def valid_depth(depth: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Select the pixels whose true depth is in the valid range."""
    return (depth >= MIN_DEPTH_METRES) & (depth <= MAX_DEPTH_METRES)
