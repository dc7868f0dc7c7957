"""The stored predictions of a trial on the validation split: of small ones all clips, of large ones some clips.

Axes: B clips, n kept clips, T frames, C classes, O boxes, Q points, H and W pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

_NUM_PICTURED = 16


class Answers(NamedTuple):
    """What a module answers to a batch.

    Attributes:
        indices: Position of each clip in what it is read from.
        targets: Ground truth of the clips.
        predictions: Predictions for every frame of them.
        loss: Mean loss of the batch.
    """

    indices: Int64[np.ndarray, " B"]
    targets: dict[str, Tensor]
    predictions: dict[str, Tensor]
    loss: Float[Tensor, ""]

    def cpu(self) -> "Answers":
        """Return the same on the host."""
        targets, predictions = (
            {name: each.cpu() for name, each in part.items()} for part in (self.targets, self.predictions)
        )
        return Answers(self.indices, targets, predictions, self.loss.cpu())


class KeptPredictions:
    """Gathers predictions batch by batch."""

    def __init__(self) -> None:
        """Start with none."""
        self._parts: dict[str, list[Tensor]] = {}
        self._num_kept = 0

    def add(self, answers: Answers) -> None:
        """Keep a part of a batch's predictions.

        From `logits (B, T, C)`, the logits of the last frame and the class of every frame are kept for all clips. From
        others, such as `boxes (B, O, T, 4)` or `depth (B, T, H, W)`, the first 16 clips are kept, enough for pictures.
        Of hidden tokens, the mean cosine of each hidden frame `cosines (B, h)` is kept.
        """
        predictions = answers.predictions
        indices = torch.from_numpy(np.asarray(answers.indices, dtype=np.int64))
        if "logits" in predictions:
            logits = predictions["logits"]
            kept = {"labels": answers.targets["label"], "logits": logits[:, -1].float()}
            self._append({"indices": indices, "frame_classes": logits.argmax(-1).int(), **kept})
            return
        if "wanted" in predictions:  # hidden tokens: how well they were predicted, not megabytes of tokens
            predictions = {
                "cosines": functional.cosine_similarity(
                    predictions["tokens"].float(), predictions["wanted"].float(), dim=-1
                ).mean(-1)
            }
        num_more = min(len(indices), _NUM_PICTURED - self._num_kept)
        if num_more > 0:
            self._num_kept += num_more
            dense = {name: part.half() if name == "depth" else part.float() for name, part in predictions.items()}
            self._append({name: part[:num_more] for name, part in {"indices": indices, **dense}.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return one tensor per name, including `indices (n,)`; clips with fewer objects are padded with zeros."""
        return {name: _concatenate(parts) for name, parts in self._parts.items()}

    def _append(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._parts.setdefault(name, []).append(tensor.cpu())


def _concatenate(parts: list[Tensor]) -> Tensor:
    """Join along the clips; the second axis is padded if it differs."""
    if parts[0].ndim == 1:
        return torch.cat(parts)
    longest = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, [0, 0] * (part.ndim - 2) + [0, longest - part.shape[1]]) for part in parts])
