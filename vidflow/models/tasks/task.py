"""The interface of a task: from tokens of the frozen encoder to predictions for every frame, by clip or by frame.

Axes: B clips (rows), T frames, K tapped depths, N patch tokens, P prefix tokens, D width, L = P + N tokens of the core.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vidflow.models.cores.depth_mixing import DepthMixing, join_prefix
from vidflow.models.cores.temporal_core import State, TemporalCore, reset_rows
from vidflow.models.cores.token_adapter import TokenAdapter
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.token_scale import TokenScale


class TaskState(NamedTuple):
    """The state of streams between two frames: tensors whose first axis is the batch."""

    core: State
    readout: State


Followed = Literal["boxes", "points"]


class Query(NamedTuple):
    """What a tracking task is told to follow: the name of the queries, and how many numbers in [0, 1] each has."""

    name: Followed
    num_values: int


class Task(nn.Module, ABC):
    """Depth mixing, a temporal core and a readout, with the loss that trains them.

    Attributes:
        core: The temporal core.
        token_scale: Scales the encoder's tokens; None, as published, leaves them unchanged.
        unmerges: Whether the task takes reduced tokens on the full grid of patches, or as they are stored.
        depth_mixing: The adapters of the tapped depths; None if only one depth is tapped.
        token_adapter: Adapter of the core's input; None if there is none.
        frame_axis: Axis of the frames in the predictions of a clip.
        query: What the task must be told to follow; None for tasks without queries.
    """

    frame_axis: ClassVar[int] = 1
    query: ClassVar[Query | None] = None

    def __init__(self, core: TemporalCore, options: TaskOptions) -> None:
        super().__init__()
        self.core = core
        self.num_depths = options.num_depths
        self.token_scale = TokenScale(self.num_depths, core.embed_dim) if options.standardize else None
        self.unmerges = options.unmerge
        self.depth_mixing = (
            DepthMixing(core.embed_dim, self.num_depths, chunk_frames=options.mixing_chunk_frames)
            if self.num_depths > 1
            else None
        )
        self.token_adapter: TokenAdapter | None = None

    @abstractmethod
    def read(
        self, features: Float[Tensor, "B T L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Predict every frame from the core's outputs, continuing from `state`, which is not modified."""

    @abstractmethod
    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Compare the predictions for whole clips with their ground truth."""

    def queries_of(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the queries for clips with this ground truth; empty for tasks without queries."""
        del targets
        return {}

    def init_readout(self, batch_size: int, num_queries: int, device: torch.device | str | None) -> State:
        """Build the readout's state before the first frame; empty for readouts of single frames."""
        del batch_size, num_queries, device
        return ()

    def forward(
        self,
        tokens: Float[Tensor, "B T K N D"],
        prefix: Float[Tensor, "B T P D"] | None,
        queries: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Predict every frame of whole clips.

        Args:
            tokens: Patch tokens of every tapped depth, as the encoder or a feature file returns them.
            prefix: Prefix tokens of the last depth, or None.
            queries: What `queries_of` returns; empty for tasks without queries.

        Raises:
            ValueError: The number of depths is not that of the task.
        """
        return self.forward_mixed(self.mix(tokens, prefix), queries)

    def forward_mixed(self, tokens: Float[Tensor, "B T L D"], queries: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute `forward` on tokens that are already mixed and joined: core and readout only."""
        features, _ = self.core(tokens)
        predictions, _ = self.read(features, queries, self._fresh_readout(tokens, queries))
        return predictions

    def step(
        self,
        tokens: Float[Tensor, "B K N D"],
        prefix: Float[Tensor, "B P D"] | None,
        queries: dict[str, Tensor],
        state: TaskState | None = None,
    ) -> tuple[dict[str, Tensor], TaskState]:
        """Predict the next frame of streams; the predictions have no frame axis.

        In eval mode the results equal those of `forward`. In training mode batch norm sees one frame at a time.
        """
        return self.step_mixed(
            self.mix(tokens[:, None], None if prefix is None else prefix[:, None])[:, 0], queries, state
        )

    def step_mixed(
        self, tokens: Float[Tensor, "B L D"], queries: dict[str, Tensor], state: TaskState | None = None
    ) -> tuple[dict[str, Tensor], TaskState]:
        """Compute `step` on tokens that are already mixed and joined."""
        features, core_state = self.core.step(tokens, state.core if state else None)
        readout_state = state.readout if state else self._fresh_readout(tokens, queries)
        predictions, readout_state = self.read(features[:, None], queries, readout_state)
        return {key: part.squeeze(self.frame_axis) for key, part in predictions.items()}, TaskState(
            core_state, readout_state
        )

    def init_stream(
        self,
        batch_size: int,
        num_tokens: int,
        *,
        num_queries: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TaskState:
        """Build the state of streams before their first frame.

        Args:
            batch_size: Number of streams.
            num_tokens: Tokens per frame that the core sees, prefix tokens included.
            num_queries: Objects or points per stream, for the tracking tasks.
            device: Device of the state.
            dtype: Dtype of the core's state; None is torch's default.
        """
        core_state = self.core.init_state(batch_size, num_tokens, device=device, dtype=dtype)
        return TaskState(core_state, self.init_readout(batch_size, num_queries, device))

    def reset_rows(self, state: TaskState, mask: Bool[Tensor, " B"]) -> TaskState:
        """Reset the streams where `mask` is true to the state before the first frame."""
        return TaskState(self.core.reset_rows(state.core, mask), reset_rows(state.readout, mask))

    def mix(
        self, tokens: Float[Tensor, "B T K N D"], prefix: Float[Tensor, "B T P D"] | None
    ) -> Float[Tensor, "B T L D"]:
        """Turn the encoder's tokens into the core's input, in the precision of the weights."""
        if tokens.ndim != 5 or tokens.shape[2] != self.num_depths:
            raise ValueError(
                f"{type(self).__name__} takes tokens (B, T, K={self.num_depths}, N, D); got {tuple(tokens.shape)}. "
                "Build the task with num_depths equal to the number of tapped depths"
            )
        dtype = next(self.parameters()).dtype
        if self.token_scale is not None:
            tokens, prefix = self.token_scale(tokens.to(dtype), prefix)
        mixed: Tensor = (
            join_prefix(tokens[:, :, 0], prefix, dtype)
            if self.depth_mixing is None
            else self.depth_mixing(tokens.to(dtype), prefix)
        )
        return mixed if self.token_adapter is None else self.token_adapter(mixed)

    def _fresh_readout(self, tokens: Tensor, queries: dict[str, Tensor]) -> State:
        num_queries = max((part.shape[1] for part in queries.values()), default=0)
        return self.init_readout(tokens.shape[0], num_queries, tokens.device)
