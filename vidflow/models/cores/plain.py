"""Temporal cores without attention or scan: the frame itself, the running mean, and a GRU per token.

Axes: B clips, T frames, N tokens of a frame, D width, L layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.models.cores.temporal_core import State, StateShape, TemporalCore


class IdentityCore(TemporalCore):
    """No memory: normalise each frame by itself, to measure what the frozen encoder alone can do."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__(embed_dim)
        self.output_norm = nn.LayerNorm(embed_dim)

    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Remember nothing."""
        del num_tokens
        return ()

    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B T N D"], State]:
        """Normalise."""
        del state
        return self.output_norm(tokens), ()


class MeanCore(TemporalCore):
    """Average each token over the frames so far: a baseline that ignores the order of frames."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__(embed_dim)
        self.output_norm = nn.LayerNorm(embed_dim)

    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Remember the mean so far and the number of frames in it."""
        return ((num_tokens, self.embed_dim), None), ((), torch.int64)

    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B T N D"], State]:
        """Update the running mean."""
        means, state = running_means(tokens, self._start(tokens, state))
        return self.output_norm(means), state


def running_means(tokens: Float[Tensor, "B T N D"], state: State) -> tuple[Float[Tensor, "B T N D"], State]:
    """Return the mean of each token over the frames so far, and the new state: the last mean and the frames in it.

    Each frame moves the mean towards itself by 1 / (number of frames so far).
    """
    mean, count = state
    counts = count[:, None] + torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    shares = counts[:, :, None, None].to(tokens.dtype).reciprocal()
    means = []
    for frame, share in zip(tokens.unbind(1), shares.unbind(1), strict=True):
        mean = mean.lerp(frame, share)
        means.append(mean)
    return torch.stack(means, 1), (mean, counts[:, -1])


class GruCore(TemporalCore):
    """A stacked GRU over the frames of each token, with weights shared by all tokens.

    Source: Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder, section 2.3, in torch's form.
    """

    def __init__(self, embed_dim: int, num_layers: int) -> None:
        super().__init__(embed_dim)
        self.gru = nn.GRU(embed_dim, embed_dim, num_layers, batch_first=True)
        self.output_norm = nn.LayerNorm(embed_dim)

    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Remember the hidden vector of every layer and token."""
        return (((num_tokens, self.gru.num_layers, self.embed_dim), None),)

    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B T N D"], State]:
        """Fold the tokens into the batch and let torch run the recurrence."""
        (hidden,) = self._start(tokens, state)
        batch_size, _, num_tokens, _ = tokens.shape
        sequences = tokens.transpose(1, 2).flatten(0, 1)
        output, hidden = self.gru(sequences, hidden.flatten(0, 1).transpose(0, 1).contiguous())
        output = output.unflatten(0, (batch_size, num_tokens)).transpose(1, 2)
        return self.output_norm(output), (hidden.transpose(0, 1).unflatten(0, (batch_size, num_tokens)),)
