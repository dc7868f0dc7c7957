"""How well hidden tokens were predicted, beside a copy of the nearest visible frame.

Axes: B clips, h hidden frames, L tokens of a frame, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from vidflow.models.tasks.metrics.metric import require_counted

_ANSWERS = {"masked": "tokens", "copied": "copied"}


class MaskedTokensMetric:
    """Mean squared error and mean cosine over all hidden tokens, of the prediction and of the copy.

    Hidden tokens have a mean square of 1, so an answer of zeros has an error of 1.
    """

    def __init__(self) -> None:
        """Count nothing yet."""
        self._sums = {name: torch.zeros(2, dtype=torch.float64) for name in _ANSWERS}
        self._num_tokens = 0

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add `tokens` and `copied`, both (B, h, L, D), compared with `wanted`."""
        del targets
        wanted = predictions["wanted"].float()
        for name, key in _ANSWERS.items():
            answer = predictions[key].detach().float()
            errors = (answer - wanted).square().mean(-1)
            cosines = functional.cosine_similarity(answer, wanted, dim=-1)
            self._sums[name] += torch.stack([errors.double().sum(), cosines.double().sum()]).cpu()
        self._num_tokens += wanted[..., 0].numel()

    def compute(self) -> dict[str, float]:
        """Return `masked_mse` and `masked_cosine` of the prediction, `copied_mse` and `copied_cosine` of the copy."""
        require_counted(self._num_tokens, "hidden token")
        means = {name: (sums / self._num_tokens).tolist() for name, sums in self._sums.items()}
        return {
            f"{name}_{word}": means[name][place] for name in _ANSWERS for place, word in enumerate(("mse", "cosine"))
        }


__all__ = ["MaskedTokensMetric"]
