"""Readouts: learned queries that attend to the tokens of a frame, and a decoder for the queries of trackers.

Axes: B clips, T frames, N tokens of a frame, C width of the tokens, Q queries, P width of the readout.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# Initial standard deviation of learned queries and of the frame embedding.
_QUERY_STD = 0.02


class AttentionReadout(nn.Module):
    """Q learned queries attend to the tokens of a window of frames; each outputs `num_outputs` numbers.

    Source: 4DS (arXiv 2412.15212) and V-JEPA (arXiv 2404.08471) attentive probes, as used by Orlova et al. 2026
    (arXiv 2605.19137): no projection of the queries, norms with eps 1e-5.
    """

    def __init__(
        self,
        embed_dim: int,
        num_outputs: int,
        *,
        width: int,
        num_heads: int,
        num_queries: int = 1,
        num_frames: int = 0,
        query_std: float = _QUERY_STD,
    ) -> None:
        """Build the readout.

        Args:
            embed_dim: Width of the tokens.
            num_outputs: Output numbers per query.
            width: Width of the readout.
            num_heads: Attention heads.
            num_queries: Number of queries.
            num_frames: Frames of the window; if above zero, each gets a learned embedding.
            query_std: Initial standard deviation of the queries. Small queries attend to all tokens alike. That is
                good for one query that pools a frame; training stalls for many queries with a place of their own.
        """
        super().__init__()
        self.input_norm = nn.LayerNorm(embed_dim)
        self.temporal_posenc = None
        if num_frames:
            self.temporal_posenc = nn.Parameter(torch.randn(1, num_frames, 1, embed_dim) * _QUERY_STD)
        self.query = nn.Parameter(torch.randn(num_queries, num_heads, width // num_heads) * query_std)
        self.key_proj = nn.Linear(embed_dim, width)
        self.value_proj = nn.Linear(embed_dim, width)
        self.out_proj = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_fc1 = nn.Linear(width, 4 * width)
        self.mlp_fc2 = nn.Linear(4 * width, width)
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, tokens: Float[Tensor, "B T N C"]) -> Float[Tensor, "B Q outputs"]:
        """Read out one answer per query from all T frames together; T is 1 when streaming."""
        features = self.input_norm(tokens)
        if self.temporal_posenc is not None:
            features = features + self.temporal_posenc
        features = features.flatten(1, 2)
        num_rows = self.query.shape[0] * self.query.shape[1]
        attended = self._attend_folded(features) if num_rows <= self.query[0].numel() else self._attend(features)
        z = self.query.flatten(1) + self.out_proj(attended)
        z = z + self.mlp_fc2(functional.gelu(self.mlp_fc1(self.mlp_norm(z))))
        answers: Tensor = self.classifier(z)
        return answers

    def attention(self, tokens: Float[Tensor, "B T N C"]) -> Float[Tensor, "B Q heads T*N"]:
        """Return the weights with which `forward` averages the values of the tokens; each row sums to one."""
        features = self.input_norm(tokens)
        if self.temporal_posenc is not None:
            features = features + self.temporal_posenc
        keys = self._split_heads(self.key_proj(features.flatten(1, 2)))
        query = self.query.transpose(0, 1) * self.query.shape[-1] ** -0.5
        weights: Tensor = (query @ keys.mT).softmax(dim=-1)
        return weights.transpose(1, 2)

    def _attend_folded(self, features: Float[Tensor, "B L C"]) -> Float[Tensor, "B Q P"]:
        """Compute `_attend` without a key or a value per token; this is cheaper if Q x heads is at most P.

        Scores are linear in the tokens, so the key projection is applied to the queries instead. Its bias adds the same
        number to all scores of a query, which softmax ignores. Attention weights sum to one, so tokens are averaged
        before the value projection.
        """
        num_queries, num_heads, head_dim = self.query.shape
        key_weight = self.key_proj.weight.view(num_heads, head_dim, -1)
        value_weight = self.value_proj.weight.view(num_heads, head_dim, -1)
        folded = (self.query.transpose(0, 1) * head_dim**-0.5) @ key_weight
        scores = folded.flatten(0, 1) @ features.mT
        pooled = (scores.softmax(dim=-1) @ features).unflatten(1, (num_heads, num_queries))
        values = pooled.transpose(0, 1).flatten(1, 2) @ value_weight.mT
        attended: Tensor = values.unflatten(1, (-1, num_queries)).permute(1, 2, 0, 3).flatten(2)
        return attended + self.value_proj.bias

    def _attend(self, features: Float[Tensor, "B L C"]) -> Float[Tensor, "B Q P"]:
        query = self.query.to(features.dtype).transpose(0, 1).expand(len(features), -1, -1, -1)
        keys, values = self._split_heads(self.key_proj(features)), self._split_heads(self.value_proj(features))
        return functional.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)

    def _split_heads(self, x: Float[Tensor, "B L P"]) -> Float[Tensor, "B h L d"]:
        return x.reshape(*x.shape[:2], *self.query.shape[1:]).transpose(1, 2)


class ClassTokenReadout(nn.Module):
    """A linear layer on the class token, which is the first token of a frame, behind dropout.

    Behind the core `mean` it reads the mean class token of the frames so far. The published head has no norm between
    the mean and the linear layer; ours has the norm that ends every core.

    Source: classification head of ZeroI2V (Li et al., ECCV 2024, arXiv 2310.01324), released configurations.
    """

    def __init__(self, embed_dim: int, num_outputs: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(embed_dim, num_outputs)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: Float[Tensor, "B T N C"]) -> Float[Tensor, "B 1 outputs"]:
        """Read out one answer from the first frame of a window; the window has one frame."""
        answers: Tensor = self.classifier(self.dropout(tokens[:, 0, :1]))
        return answers


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer with ReLU in which every query sees itself and the memory, but no other query.

    Self-attention of a single query is a linear map of its value. So many queries in one call give exactly the results
    of separate calls, without a mask and without a copy of the memory per query.

    Source: torch's `TransformerDecoderLayer`, used with one query by Orlova et al. 2026 (arXiv 2605.19137).
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.multihead_attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, query: Float[Tensor, "B Q P"], memory: Float[Tensor, "B N P"]) -> Float[Tensor, "B Q P"]:
        """Read the memory into every query."""
        width = query.shape[-1]
        value = functional.linear(
            self.norm1(query), self.self_attn.in_proj_weight[-width:], self.self_attn.in_proj_bias[-width:]
        )
        query = query + self.self_attn.out_proj(value)
        query = query + self.multihead_attn(self.norm2(query), memory, memory, need_weights=False)[0]
        change: Tensor = self.linear2(functional.relu(self.linear1(self.norm3(query))))
        return query + change


class QueryDecoder(nn.Module):
    """One decoder layer and a norm over tokens projected to the readout's width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(width, num_heads)])
        self.output_norm = nn.LayerNorm(width)

    def forward(self, query: Float[Tensor, "B Q P"], memory: Float[Tensor, "B N P"]) -> Float[Tensor, "B Q P"]:
        """Decode every query independently; Q may be zero."""
        for layer in self.layers:
            query = layer(query, memory)
        decoded: Tensor = self.output_norm(query)
        return decoded


def build_projection(embed_dim: int, width: int) -> nn.Module:
    """Build the map from the core's width to the readout's: a linear layer if they differ, else the identity."""
    return nn.Identity() if embed_dim == width else nn.Linear(embed_dim, width)
