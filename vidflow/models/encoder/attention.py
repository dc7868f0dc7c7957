"""Attention with a bias per key, fused or step by step.

Axes: B samples, h heads, S queries, d width of a head, g heads and L tokens of keys.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor


def attend(
    queries: Float[Tensor, "B h S d"],
    keys: Float[Tensor, "B g L d"],
    values: Float[Tensor, "B g L d"],
    bias: Float[Tensor, "B L"] | Float[Tensor, "B h L"] | None,
    *,
    num_unbiased: int = 0,
) -> Float[Tensor, "B h S d"]:
    """Attend with the fused kernel, adding a bias per key without a mask.

    With q' = [q, 1, 1] and k' = [k, sqrt(d) b] the logits q'k' / sqrt(d) are exactly qk / sqrt(d) + b. A mask would
    prevent the fused kernel. The bias takes two channels, because one bfloat16 number cannot hold log s; the second
    channel has the rounding error of the first. A query with zeros instead of ones sees no bias.

    Args:
        queries: The queries.
        keys: The keys; their heads may serve several heads of queries.
        values: The values.
        bias: What is added to every logit of a key, for all heads or for each head.
        num_unbiased: Number of queries, from the first, that see no bias.

    Source: proportional attention of ToMe (Bolya et al., ICLR 2023), section 3, equation 1.
    """
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    if bias is None:
        return F.scaled_dot_product_attention(queries, keys, values)
    batch, num_heads, length, width = queries.shape
    # Kernels require a width that is a multiple of 8.
    extra = -(width + 2) % 8 + 2
    scaled = bias * width**0.5
    coarse = scaled.to(keys.dtype)
    fine = (scaled - coarse.float()).to(keys.dtype)
    channels = F.pad(torch.stack([coarse, fine], dim=-1), (0, extra - 2))
    channels = channels if bias.ndim == 3 else channels.unsqueeze(1).expand(-1, num_heads, -1, -1)
    keys = torch.cat([keys, channels], dim=-1)
    biased = (torch.arange(length, device=queries.device) >= num_unbiased).to(queries.dtype)
    queries = torch.cat([queries, biased.view(1, 1, -1, 1).expand(batch, num_heads, -1, extra)], dim=-1)
    attended = F.scaled_dot_product_attention(queries, keys, F.pad(values, (0, extra)), scale=width**-0.5)
    return attended[..., :width]


def attend_eagerly(
    queries: Float[Tensor, "B h S d"],
    keys: Float[Tensor, "B h L d"],
    values: Float[Tensor, "B h L d"],
    bias: Float[Tensor, "B L"] | Float[Tensor, "B h L"] | None,
    *,
    num_unbiased: int = 0,
) -> Float[Tensor, "B h S d"]:
    """Attend as `attend` does, but write out the table of logits: what published timings measure."""
    logits = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
    if bias is not None:
        biased = (torch.arange(queries.shape[2], device=bias.device) >= num_unbiased).float()
        per_head = bias if bias.ndim == 3 else bias[:, None]
        logits = logits + per_head[:, :, None] * biased.unsqueeze(1)
    return torch.softmax(logits, dim=-1, dtype=torch.float32).to(values.dtype) @ values


__all__ = ["attend", "attend_eagerly"]
