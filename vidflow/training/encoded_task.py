"""An encoder and a task as one module: what a trial trains if the encoder, or its last blocks, run within the trial.

Axes: B clips, T frames, S tokens of a frame (P prefix tokens, then N patch tokens), K tapped depths, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.models.encoder.adapted import AdaptedEncoder
from vidflow.models.encoder.fitting import fit_frames
from vidflow.models.encoder.frozen import FrozenEncoder
from vidflow.models.tasks import Task
from vidflow.training.batches import Batch
from vidflow.training.feeds import FrameBatch

Tokens = tuple[Float[Tensor, "B T K N D"], Float[Tensor, "B T P D"] | None]


class EncodedTask(nn.Module):
    """An encoder in front of a task; the state dict holds what is trained, so nothing of the frozen weights.

    Attributes:
        encoder: What is trained in the encoder; None if nothing is.
        task: Depth mixing, core and readout.
        frozen: The frozen encoder; no part of the state dict.
        first_block: Block that stored streams enter; None if batches hold frames.
    """

    def __init__(
        self, encoder: AdaptedEncoder | None, task: Task, *, frozen: FrozenEncoder, first_block: int | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.task = encoder, task
        self.frozen, self.first_block = frozen, first_block

    def forward(self, batch: Batch | FrameBatch) -> dict[str, Tensor]:
        """Predict every frame of whole clips."""
        tokens, prefix = self.encode(batch)
        predictions: dict[str, Tensor] = self.task(tokens, prefix, self.task.queries_of(batch.targets))
        return predictions

    def encode(self, batch: Batch | FrameBatch) -> Tokens:
        """Return the tokens and the prefix tokens of a batch, as a batch of stored features has them."""
        if isinstance(batch, Batch):
            assert self.encoder is not None, "a stored stream is adapted; see the checks of the config"
            assert self.first_block is not None
            tokens, prefix = self.encoder.forward_from(join_stream(batch), self.first_block)
            return tokens, prefix
        batch_size = batch.frames.shape[:2]
        frames = fit_frames(batch.frames.flatten(0, 1), self.frozen.img_size).unflatten(0, batch_size)
        if self.encoder is not None:
            tokens, prefix = self.encoder(frames)
            return tokens, prefix
        encoded = self.frozen.encode(frames)
        # Copies, because autograd refuses tensors that were made in inference mode.
        # The encoder may give fewer frames than it takes.
        clips = (batch_size[0], encoded.num_frames)
        prefix = encoded.prefix.clone().unflatten(0, clips)
        return encoded.tokens.clone().unflatten(0, clips), prefix if prefix.shape[2] else None


def join_stream(batch: Batch) -> Float[Tensor, "B T S D"]:
    """Return the residual stream of a batch whose only depth is stored before the final norm."""
    patches = batch.tokens[:, :, 0]
    return patches if batch.prefix is None else torch.cat([batch.prefix, patches], dim=2)


def task_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the task alone from those of an encoder and a task."""
    return {name.removeprefix("task."): each for name, each in tensors.items() if name.startswith("task.")}


__all__ = ["EncodedTask", "join_stream", "task_weights"]
