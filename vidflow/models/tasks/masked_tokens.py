"""Masked prediction of cached tokens: it trains a core without labels, for `init_from` of other trials.

Axes: B clips, T frames, k visible and h hidden frames, K tapped depths, N patch tokens, P prefix tokens, D width,
L = P + N tokens of the core.
"""

import math
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vidflow.config.tasks import count_visible, facts_of
from vidflow.models.cores.depth_mixing import join_prefix
from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.tasks.frame_decoder import FrameDecoder
from vidflow.models.tasks.masking import Places, choose_places, nearest_visible, score_changes, take_frames
from vidflow.models.tasks.metrics.masked_tokens import MaskedTokensMetric
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.spec import TaskSpec, TrivialAnswer, fit_nothing
from vidflow.models.tasks.task import Task


class MaskedTokensTask(Task):
    """Predict the tokens of hidden frames from the visible ones; trains a core without labels, for `init_from`.

    Whole frames are hidden. The core sees the visible ones alone, one after the other, as if the clip had fewer
    frames: no hidden token, and nothing in its place. A small decoder, which no later trial uses, gets the core's
    outputs and the times of all frames, and predicts all tokens of each hidden frame. `readout_dim` and
    `readout_heads` are its width and heads.

    Why frames: a core is recurrent over frames. Tokens of a frozen encoder have seen their whole frame, so a token that
    is hidden alone, or along a tube through all frames, can be told from its neighbours in the same frame, without any
    memory. A hidden frame can only be told from other times.

    Source: LV-MAE (Naiman et al., ICCV 2025): of n places in time int(n (1 - rho)) stay visible, at random or those
    that changed; the encoder sees visible places only; a narrower decoder with mask tokens and sin-cos positions; unit
    vectors; the mean squared error, or 1 - cosine, over hidden places only. Differs: a place is a frame with all its
    tokens, in a clip, where LV-MAE has one vector per 5 seconds of a long video. The core gets no positions and no
    class token, as in the trials that start from it, and is causal; the decoder is not. Target vectors have a mean
    square of 1 instead of a length of 1, which multiplies the error by D. All clips of a feature set have the same
    number of frames, so nothing is padded.
    """

    def __init__(self, core: TemporalCore, options: TaskOptions) -> None:
        super().__init__(core, options)
        width, num_heads = options.readout(dim=max(2, core.embed_dim // 2), heads=16)
        self.readout = FrameDecoder(core.embed_dim, width=width, num_heads=num_heads)
        self.mask_ratio, self.mask_choice, self.mask_loss = options.mask_ratio, options.mask_choice, options.mask_loss

    def queries_of(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `mask_draws` (B, T): with `random`, the frames with the smallest numbers are visible."""
        return {"mask_draws": targets["mask_draws"]}

    def forward(
        self,
        tokens: Float[Tensor, "B T K N D"],
        prefix: Float[Tensor, "B T P D"] | None,
        queries: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Predict the hidden frames of whole clips.

        Returns:
            `tokens`, the predicted tokens, and `wanted`, the true ones with a mean square of 1, both (B, h, L, D). In
            eval mode also `copied`: those of the nearest visible frame.
        """
        places = self.choose(tokens, queries)
        predictions = self.predict(tokens, prefix, places)
        wanted = self._scaled(tokens, prefix)
        predictions["wanted"] = take_frames(wanted, places.hidden)
        if not self.training:
            predictions["copied"] = take_frames(wanted, nearest_visible(places))
        return predictions

    def choose(self, tokens: Float[Tensor, "B T K N D"], queries: dict[str, Tensor]) -> Places:
        """Choose the visible frames: by the draws, or by the change of the last depth's mean token."""
        match self.mask_choice:
            case "random":
                scores = queries["mask_draws"]
            case "importance":
                scores = score_changes(tokens[:, :, -1])
            case _:
                assert_never(self.mask_choice)
        return choose_places(scores, count_visible(tokens.shape[1], self.mask_ratio))

    def predict(
        self, tokens: Float[Tensor, "B T K N D"], prefix: Float[Tensor, "B T P D"] | None, places: Places
    ) -> dict[str, Tensor]:
        """Predict `tokens` (B, h, L, D) from the visible frames; nothing of the others is read."""
        seen = take_frames(tokens, places.visible)
        # Before depth mixing, whose batch norm would see hidden frames.
        mixed = self.mix(seen, None if prefix is None else take_frames(prefix, places.visible))
        return self.forward_mixed(mixed, places._asdict())

    def read(
        self, features: Float[Tensor, "B k L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Return `tokens` (B, h, L, D) from the core's outputs at the `visible` frames; queries hold both places."""
        return {"tokens": self.readout(features, Places(**queries))}, state

    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Compare the predicted with the true tokens of the hidden frames."""
        del targets
        predicted, wanted = predictions["tokens"].float(), predictions["wanted"].float()
        match self.mask_loss:
            case "mse":
                return functional.mse_loss(predicted, wanted)
            case "cosine":
                return 1 - functional.cosine_similarity(predicted, wanted, dim=-1).mean()
            case _:
                assert_never(self.mask_loss)

    def _scaled(
        self, tokens: Float[Tensor, "B T K N D"], prefix: Float[Tensor, "B T P D"] | None
    ) -> Float[Tensor, "B T L D"]:
        """Return all tokens that a core sees of the last depth, each with a mean square of 1."""
        if self.token_scale is not None:
            tokens, prefix = self.token_scale(tokens.float(), prefix)
        joined = join_prefix(tokens[:, :, -1], prefix, torch.float32)
        return functional.normalize(joined, dim=-1) * math.sqrt(joined.shape[-1])


def _answer_zeros(fitted: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Answer zeros to any token; all tokens have a mean square of 1, so that one of ones stands for them."""
    del fitted, targets
    zeros = torch.zeros(1, 1, 1, 1)
    return {"tokens": zeros, "copied": zeros, "wanted": zeros + 1}


MASKED_TOKENS = TaskSpec(
    facts=facts_of("masked_tokens"),
    build=MaskedTokensTask,
    build_metric=MaskedTokensMetric,
    trivial=TrivialAnswer(words="the number 0 in every channel of a token", fit=fit_nothing, answer=_answer_zeros),
)
