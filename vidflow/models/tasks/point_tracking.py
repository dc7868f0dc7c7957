"""Point tracking: follow points that are given once, and predict whether each is visible.

Axes: B clips, Q points, T frames, L tokens of the core, D width, P width of the readout.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vidflow.config.tasks import facts_of
from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.precision import at_least_single
from vidflow.models.tasks.coordinates import QueryEncoder, at_frames, hold
from vidflow.models.tasks.metrics.point_tracking import RASTER, PointTrackingMetric, after_query_frame
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.readouts import QueryDecoder, build_projection
from vidflow.models.tasks.spec import TaskSpec, TrivialAnswer, fit_nothing
from vidflow.models.tasks.task import Query, Task

# The Huber loss is quadratic up to this distance, in pixels of the metric's raster.
# Source: TAPIR (arXiv 2306.08637), section 3.4 and its public training code.
_HUBER_PIXELS = 4.0
_HUBER_WEIGHT = 0.05
_UNCERTAIN_PIXELS = 6.0
# How far an output of 1 moves a point, as a fraction of the frame: 16 pixels of the raster, the metric's largest
# threshold. With the whole frame, one optimizer step would move points by more than the thresholds.
_MOVE = 1 / 16
# Logit that means certain, for the frame where the point is given.
_CERTAIN = 10.0


class PointTrackingTask(Task):
    """Follow points, each given once: decode position and visibility of each point from the tokens of every frame.

    Source: Orlova et al. 2026 (arXiv 2605.19137), streaming Perception Test readout. There the query frame is not an
    input of the network, so all points must be given in frame 0. Differs by default in three ways. First, what a query
    reads at its query frame is added, through a linear map, to the query of all later frames. This tells them what to
    look for; it is causal and costs one decode per distinct query frame. Second, the head moves the given point instead
    of predicting two coordinates, so it need not learn to repeat the given position. Third, there are fewer Fourier
    bases: bases finer than a pixel tell points of a small frame apart by chance. `reference=True` is as published.
    """

    frame_axis: ClassVar[int] = 2
    query: ClassVar[Query | None] = Query("points", 2)

    def __init__(self, core: TemporalCore, options: TaskOptions) -> None:
        width, num_heads = options.readout(heads=8)
        super().__init__(core, options)
        self.projection = build_projection(core.embed_dim, width)
        hidden = options.query_hidden_dim or width // 2
        self.query_encoder = QueryEncoder(2, width, hidden_dim=hidden, num_frequencies=options.bases)
        self.decoder = QueryDecoder(width, num_heads)
        hidden = options.head_hidden_dim or width // 2
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 4))
        self.appearance = None if options.reference else nn.Linear(width, width)
        self.width = width

    def queries_of(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the position of every point at its query frame, and the index of that frame."""
        frames = targets["query_frames"]
        return {"points": at_frames(targets["points"], frames), "query_frames": frames}

    def init_readout(self, batch_size: int, num_queries: int, device: torch.device | str | None) -> State:
        """Remember the number of frames seen and what each query read at its query frame."""
        age = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return age, torch.zeros(batch_size, num_queries, self.width, device=device)

    def read(
        self, features: Float[Tensor, "B T L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Return `points` (B, Q, T, 2), in [0, 1] within the frame, and two logits per point and frame.

        The logits are `visibility_logits` and `uncertainty_logits`, both (B, Q, T).

        Args:
            features: Outputs of the core.
            queries: `points` (B, Q, 2), x and y in [0, 1], and optionally `query_frames` (B, Q), the frames they
                belong to, 0 by default. Do not rely on predictions before a point's query frame.
            state: The number of frames seen, and what each query read at its query frame.
        """
        age, seen = state
        given = at_least_single(queries["points"])
        # Query frame relative to the first frame of `features`: negative if it is in the past.
        since = queries.get("query_frames", torch.zeros_like(given[..., 0]).long()) - age[:, None]
        memory = self.projection(features)
        query = self.query_encoder(given).to(memory.dtype)
        per_frame = query[:, None].expand(-1, features.shape[1], -1, -1)
        if self.appearance is not None:
            seen = self._look(query, memory, since, seen)
            frames = torch.arange(features.shape[1], device=features.device)
            is_known = frames[:, None] >= since[:, None]
            per_frame = per_frame + is_known[..., None] * self.appearance(seen.to(memory.dtype))[:, None]
        decoded = self.decoder(per_frame.flatten(0, 1), memory.flatten(0, 1))
        raw = at_least_single(self.head(decoded)).view(*per_frame.shape[:3], 4).transpose(1, 2)
        moved = raw[..., :2].sigmoid() if self.appearance is None else given[:, :, None] + _MOVE * raw[..., :2]
        return _overwrite_query_frame(moved, raw[..., 2:], given, since), (age + features.shape[1], seen)

    def _look(
        self,
        query: Float[Tensor, "B Q P"],
        memory: Float[Tensor, "B T L P"],
        since: Int[Tensor, "B Q"],
        seen: Float[Tensor, "B Q P"],
    ) -> Float[Tensor, "B Q P"]:
        """Fill in the readings of the queries whose query frame is among these frames."""
        for t in torch.unique(since).tolist():
            if 0 <= t < memory.shape[1]:
                found = self.decoder(query, memory[:, t]).to(seen.dtype)
                seen = torch.where((since == t)[..., None], found, seen)
        return seen

    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Compare with `points` (B, Q, T, 2), `points_visible` (B, Q, T) and `query_frames` (B, Q).

        The loss is the sum of three means over the frames after the query frame: a Huber loss on the distance of
        visible points; the cross-entropy of visibility; and, for visible points, the cross-entropy of an error above
        6 pixels. Points that are never visible do not count.
        """
        visible = targets["points_visible"]
        counted = after_query_frame(visible, targets["query_frames"])
        located = counted & visible
        wanted = targets["points"].to(predictions["points"].dtype)
        distance = (RASTER * (predictions["points"] - wanted))[located].norm(dim=-1)
        huber = functional.huber_loss(distance, torch.zeros_like(distance), reduction="sum", delta=_HUBER_PIXELS)
        seen = functional.binary_cross_entropy_with_logits(
            predictions["visibility_logits"][counted], visible[counted].float(), reduction="sum"
        )
        uncertain = functional.binary_cross_entropy_with_logits(
            predictions["uncertainty_logits"][located],
            (distance.detach() > _UNCERTAIN_PIXELS).float(),
            reduction="sum",
        )
        num_located, num_counted = located.sum().clamp(min=1), counted.sum().clamp(min=1)
        return (_HUBER_WEIGHT * huber + uncertain) / num_located + seen / num_counted


def _overwrite_query_frame(
    points: Float[Tensor, "B Q T 2"],
    logits: Float[Tensor, "B Q T 2"],
    given: Float[Tensor, "B Q 2"],
    since: Int[Tensor, "B Q"],
) -> dict[str, Tensor]:
    """Return the outputs by name; at the query frame they are the given point, certainly visible."""
    is_given = torch.arange(points.shape[2], device=points.device) == since[..., None]
    return {
        "points": torch.where(is_given[..., None], given[:, :, None], points),
        "visibility_logits": logits[..., 0].masked_fill(is_given, _CERTAIN),
        "uncertainty_logits": logits[..., 1].masked_fill(is_given, -_CERTAIN),
    }


def _hold_points(nothing: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    del nothing
    certain = torch.full(targets["points_visible"].shape, _CERTAIN)
    points = hold(targets["points"], targets["query_frames"])
    return {"points": points, "visibility_logits": certain, "uncertainty_logits": -certain}


POINT_TRACKING = TaskSpec(
    facts=facts_of("point_tracking"),
    build=PointTrackingTask,
    build_metric=PointTrackingMetric,
    trivial=TrivialAnswer(words="the point stays where it was given, in sight", fit=fit_nothing, answer=_hold_points),
)
