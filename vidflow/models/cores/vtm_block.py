"""A block of VTM: attention among the tokens of a group of frames, merging of tokens, and a narrower width.

Axes: R groups, n tokens of a group, m of them are targets, k tokens after merging, D width, O width after the block.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vidflow.models.precision import at_least_single


@dataclass(frozen=True, slots=True, kw_only=True)
class VtmSettings:
    """Settings of VTM alone.

    Attributes:
        groups: Frames of a group in each block, each a multiple of the one before; None: fitted to the clip.
        factor: g: one token in g is a target, rounded up.
        share: Share of the other tokens, the most similar ones, that are merged into a target; the rest stay.
    """

    groups: tuple[int, ...] | None = None
    factor: int = 6
    share: float = 1.0

    def num_targets(self, num_tokens: int) -> int:
        """Return m."""
        return math.ceil(num_tokens / self.factor)

    def num_left(self, num_tokens: int) -> int:
        """Return k."""
        return num_tokens - round(self.share * (num_tokens - self.num_targets(num_tokens)))


class VtmBlock(nn.Module):
    """Self-attention, merging into salient tokens, and a linear layer with GELU; a second path trains the saliency.

    Which tokens are targets is drawn, so no gradient comes back through the choice. In training, a second set of tokens
    with its own queries, keys and values attends with the saliency S added to its logits, is merged into the same
    groups, and is added to the first. The next block continues both.

    Source: Lee et al. 2024, Video Token Merging for Long-form Video Understanding (NeurIPS 2024, arXiv 2410.23782),
    learnable VTM. The published logits of the second path have 1 / sqrt(D) outside the softmax, a misprint; here it is
    inside. The text gives the second path its own queries, keys and values only: ours shares everything else. Several
    heads, each scaled by its own width, are our choice.
    """

    def __init__(
        self, embed_dim: int, output_dim: int, num_heads: int, *, settings: VtmSettings, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads, self.settings, self.dropout = num_heads, settings, dropout
        self.attn_norm = nn.LayerNorm(embed_dim)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.aux_qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.saliency = nn.Linear(embed_dim, 1, bias=False)
        self.narrow_norm = nn.LayerNorm(embed_dim)
        self.narrow = nn.Linear(embed_dim, output_dim)

    def forward(
        self, x: Float[Tensor, "R n D"], aux: Float[Tensor, "R n D"] | None, noise: Float[Tensor, "R n"] | None
    ) -> tuple[Float[Tensor, "R k O"], Float[Tensor, "R k O"] | None]:
        """Attend, merge and narrow.

        Args:
            x: Tokens.
            aux: Tokens of the second path; None in evaluation.
            noise: Gumbel noise: the largest sums of saliency and noise are a draw without replacement with
                probabilities softmax(S). None takes the largest saliencies.
        """
        query, key, value = self.qkv(self.attn_norm(x)).chunk(3, dim=-1)
        # No product, because autocast would round it, and equal saliencies would be taken in the order of tokens.
        saliency = torch.tanh((at_least_single(key) * self.saliency.weight[0]).sum(-1))
        scores = saliency if noise is None else saliency + noise
        rows = group_tokens(scores.detach(), key.detach(), self.settings)
        num_left = self.settings.num_left(x.shape[1])
        x = average_rows(x + self._attend(query, key, value, None), rows, num_left)
        if aux is None:
            return self._narrow(x), None
        query, key, value = self.aux_qkv(self.attn_norm(aux)).chunk(3, dim=-1)
        aux = average_rows(aux + self._attend(query, key, value, saliency), rows, num_left)
        return self._narrow(x + aux), self._narrow(aux)

    def macs(self, num_tokens: int) -> int:
        """Return the multiply-accumulates of one group of `num_tokens` tokens in evaluation."""
        width, output_dim = self.narrow.in_features, self.narrow.out_features
        products = 4 * num_tokens * width**2 + 2 * num_tokens**2 * width
        matching = num_tokens * self.settings.num_targets(num_tokens) * width
        return products + matching + self.settings.num_left(num_tokens) * width * output_dim

    def _attend(
        self,
        query: Float[Tensor, "R n D"],
        key: Float[Tensor, "R n D"],
        value: Float[Tensor, "R n D"],
        saliency: Float[Tensor, "R n"] | None,
    ) -> Float[Tensor, "R n D"]:
        """Return softmax((Q K^T + 1 S^T) / sqrt(d)) V of each head of width d, projected, with dropout."""
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        bias = None
        if saliency is not None:
            bias = (saliency / math.sqrt(query.shape[-1]))[:, None, None].to(query.dtype)
            bias = bias.expand(-1, self.num_heads, query.shape[2], -1)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return functional.dropout(projected, self.dropout, self.training)

    def _narrow(self, x: Float[Tensor, "R k D"]) -> Float[Tensor, "R k O"]:
        return functional.gelu(self.narrow(self.narrow_norm(x)))


@torch.no_grad()
def group_tokens(
    scores: Float[Tensor, "R n"], keys: Float[Tensor, "R n D"], settings: VtmSettings
) -> Int[Tensor, "R n"]:
    """Return for each token the row that it becomes part of.

    The tokens with the largest scores are the targets. Every other token joins the target whose key has the largest
    cosine with its own or, if only a share is merged, may stay a row of its own. Targets come first, in their
    order.
    """
    num_tokens = scores.shape[1]
    targets = scores.argsort(dim=1, descending=True, stable=True)[:, : settings.num_targets(num_tokens)]
    # In single precision: cosines that half precision rounds to one number differ in what matters.
    with torch.autocast(keys.device.type, enabled=False):
        keys = functional.normalize(at_least_single(keys), dim=-1)
        chosen = keys.gather(1, targets[..., None].expand(-1, -1, keys.shape[-1]))
        cosine, nearest = (keys @ chosen.mT).max(dim=2)
    cosine = cosine.scatter(1, targets, -torch.inf)
    # Targets, then the other tokens from the least similar one on.
    order = cosine.argsort(dim=1, stable=True)
    places = torch.arange(num_tokens, device=order.device).expand_as(order)
    rows = torch.empty_like(order).scatter_(1, order, places)
    own_target = rows.gather(1, targets.gather(1, nearest))
    return torch.where(rows < settings.num_left(num_tokens), rows, own_target)


def average_rows(x: Float[Tensor, "R n D"], rows: Int[Tensor, "R n"], num_rows: int) -> Float[Tensor, "R k D"]:
    """Return the plain mean of the tokens of each row; a token that stands for several counts as one."""
    sums = x.new_zeros(x.shape[0], num_rows, x.shape[2]).scatter_add(1, rows[..., None].expand_as(x), x)
    counts = x.new_zeros(x.shape[0], num_rows).scatter_add(1, rows, x.new_ones(rows.shape))
    return sums / counts[..., None]


__all__ = ["VtmBlock", "VtmSettings", "average_rows", "group_tokens"]
