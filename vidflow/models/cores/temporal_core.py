"""The interface of a temporal core: a causal map from frame tokens to tokens, with an explicit state.

Axes: B clips (rows), T frames, N tokens of a frame, D width; G frames, M tokens and O channels of the output, which are
T, N and D for all cores but `vtm`.
"""

from abc import ABC, abstractmethod
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""A core's state between frames: tensors whose first axis is the batch, all zero before the first frame."""

StateShape = tuple[tuple[int, ...], torch.dtype | None]
"""Shape without the batch axis, and a fixed dtype, or None for the dtype of the tokens."""


class TemporalCore(nn.Module, ABC):
    """A causal map from frame tokens to equally many tokens in the same order; `vtm` alone gives fewer and narrower.

    In eval mode a clip gives the same output at once, in parts that pass on the state, or frame by frame. A given state
    is never modified. Every core ends in a layer norm.

    Attributes:
        embed_dim: Width D of the tokens.
        output_dim: Width of the output tokens.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = self.output_dim = embed_dim

    @property
    def can_stream(self) -> bool:
        """Whether it can run frame by frame, with an output for each frame."""
        return True

    @abstractmethod
    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Return the shapes and dtypes of the state of one stream with `num_tokens` tokens per frame."""

    @abstractmethod
    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B G M O"], State]:
        """Compute `forward` on checked arguments; None is the state before the first frame."""

    def forward(
        self, tokens: Float[Tensor, "B T N D"], state: State | None = None
    ) -> tuple[Float[Tensor, "B G M O"], State]:
        """Advance every stream by T frames.

        Args:
            tokens: Tokens of the next T frames.
            state: The state that the previous call returned; None before the first frame.

        Returns:
            One output per frame, which depends only on this and earlier frames, and the new state.

        Raises:
            ValueError: The tokens are not (B, T >= 1, N, `embed_dim`), or the state belongs to another batch size,
                number of tokens or core.
        """
        if tokens.ndim != 4 or tokens.shape[1] < 1 or tokens.shape[-1] != self.embed_dim:
            raise ValueError(
                f"{type(self).__name__} takes tokens (B, T, N, {self.embed_dim}) with T >= 1; got {tuple(tokens.shape)}"
            )
        if state is not None:
            self._check_state(state, tokens.shape[0], tokens.shape[2])
        return self.run(tokens, state)

    def step(self, tokens: Float[Tensor, "B N D"], state: State | None = None) -> tuple[Float[Tensor, "B M O"], State]:
        """Advance every stream by one frame; `forward` with T = 1."""
        output, state = self.forward(tokens[:, None], state)
        return output[:, 0], state

    def init_state(
        self,
        batch_size: int,
        num_tokens: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """Build the state before the first frame."""
        return tuple(
            torch.zeros((batch_size, *shape), device=device, dtype=fixed or dtype)
            for shape, fixed in self.state_shapes(num_tokens)
        )

    def reset_rows(self, state: State, mask: Bool[Tensor, " B"]) -> State:
        """Reset the rows where `mask` is true to the state before the first frame; keep the others."""
        return reset_rows(state, mask)

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        """Return the size in bytes of one stream's state between two frames."""
        return sum(prod(shape) * (fixed or dtype).itemsize for shape, fixed in self.state_shapes(num_tokens))

    def _start(self, tokens: Tensor, state: State | None) -> State:
        """Return the given state, or for None the state before the first frame."""
        if state is not None:
            return state
        return self.init_state(tokens.shape[0], tokens.shape[2], device=tokens.device, dtype=tokens.dtype)

    def _check_state(self, state: State, batch_size: int, num_tokens: int) -> None:
        got = [tuple(part.shape) for part in state]
        wanted = [(batch_size, *shape) for shape, _ in self.state_shapes(num_tokens)]
        if got != wanted:
            raise ValueError(
                f"the state of {type(self).__name__} has shapes {got}, but tokens of {batch_size} clips with "
                f"{num_tokens} tokens need {wanted}; pass the state that the last call on these streams returned"
            )


def reset_rows(state: State, mask: Bool[Tensor, " B"]) -> State:
    """Set the rows of `state` where `mask` is true to zero; `where`, because a product with 0 keeps NaN."""
    return tuple(torch.where(mask.view(-1, *(1,) * (part.ndim - 1)), torch.zeros_like(part), part) for part in state)


def detach_state(state: State) -> State:
    """Cut the graph behind `state`, for truncated back-propagation through time."""
    return tuple(part.detach() for part in state)
