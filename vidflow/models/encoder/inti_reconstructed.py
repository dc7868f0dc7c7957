"""InTI, reconstructed: each two neighbouring frames become one, place by place, with predicted weights.

Axes: B clips, T frames, S tokens of a frame (P prefix tokens, then H x W patches), D width, c width of the network.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_NARROWING = 8


class IntiReconstructed(nn.Module):
    """Replace frames 2t and 2t + 1 by a convex combination whose weights depend on the place and the pair.

    A network of four scales (own token, 3 x 3, 3 x 3 at half resolution, mean of the frame) reads both tokens of a
    place. At the start both weights are 1/2. An odd last frame is paired with itself, so it stays as it is.

    Source: Zhang et al., ECCV 2024 (arXiv 2408.06840). The abstract gives the pairs, the place-wise linear combination
    and a multi-scale network that predicts the weights; the network itself is ours.
    """

    def __init__(self, embed_dim: int, *, grid: tuple[int, int], num_prefix: int) -> None:
        """Build the layer.

        Args:
            embed_dim: Width of a token.
            grid: Patches per column and per row.
            num_prefix: Prefix tokens of a frame; they see themselves and the mean of the frame only.
        """
        super().__init__()
        self.grid, self.num_prefix = grid, num_prefix
        width = embed_dim // _NARROWING
        self.norm_in = nn.LayerNorm(embed_dim)
        self.embed = nn.Linear(2 * embed_dim, width)
        self.fine = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.coarse = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.whole = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.weigh = nn.Linear(width, 2)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, clips: Float[Tensor, "B T S D"]) -> Float[Tensor, "B half S D"]:
        """Halve the frames; half is T / 2, rounded up."""
        if clips.shape[1] % 2:
            clips = torch.cat([clips, clips[:, -1:]], dim=1)
        first, second = clips[:, 0::2], clips[:, 1::2]
        weights = self.weights(first, second)
        return (weights[..., :1] * first + weights[..., 1:] * second).to(clips.dtype)

    def weights(self, first: Float[Tensor, "B T S D"], second: Float[Tensor, "B T S D"]) -> Float[Tensor, "B T S 2"]:
        """Return the weights of both frames of each pair, in float32."""
        joint = self.embed(torch.cat([self.norm_in(first), self.norm_in(second)], dim=-1)).flatten(0, 1)
        prefix, patches = joint[:, : self.num_prefix], joint[:, self.num_prefix :]
        whole = self.whole(patches.mean(dim=1, keepdim=True))
        near = patches.transpose(1, 2).unflatten(2, self.grid)
        small = functional.avg_pool2d(near, 2, ceil_mode=True, count_include_pad=False)
        around = self.fine(near) + functional.interpolate(self.coarse(small), size=self.grid, mode="bilinear")
        seen = torch.cat([prefix, patches + around.flatten(2).transpose(1, 2)], dim=1) + whole
        logits = self.weigh(functional.gelu(self.norm(seen)))
        weights: Tensor = logits.softmax(dim=-1, dtype=torch.float32).unflatten(0, first.shape[:2])
        return weights


def count_pair_macs(embed_dim: int, *, num_patches: int, num_prefix: int) -> int:
    """Count the multiply-accumulates of one pair of frames: the network, and the combination of the two."""
    width = embed_dim // _NARROWING
    num_tokens = num_patches + num_prefix
    convolutions = 9 * width * num_patches * 5 // 4
    return num_tokens * (2 * embed_dim * width + 2 * width + 2 * embed_dim) + convolutions + width**2


__all__ = ["IntiReconstructed", "count_pair_macs"]
