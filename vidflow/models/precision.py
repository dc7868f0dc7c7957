"""At least single precision for values that half precision would spoil: scans, step sizes, coordinates."""

import torch
from torch import Tensor


def at_least_single(part: Tensor) -> Tensor:
    """Cast half precision to single, and leave single and double alone."""
    return part.to(torch.promote_types(part.dtype, torch.float32))
