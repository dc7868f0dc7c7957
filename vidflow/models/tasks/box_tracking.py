"""Object tracking: follow boxes that are given once; each frame's box is predicted from the previous box.

Axes: B clips, O objects, T frames, L tokens of the core, D width.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidflow.config.tasks import facts_of
from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.precision import at_least_single
from vidflow.models.tasks.coordinates import QueryEncoder, at_frames, box_overlap, hold, to_centers, to_corners
from vidflow.models.tasks.metrics.box_tracking import BoxTrackingMetric, after_first_visible
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.readouts import QueryDecoder, build_projection
from vidflow.models.tasks.spec import TaskSpec, TrivialAnswer, fit_nothing
from vidflow.models.tasks.task import Query, Task

# Weight of the generalized IoU loss relative to the smooth L1 loss.
# Source: reconstruction of the 4DS protocol in the appendix of InternVideo-Next.
_GIOU_WEIGHT = 0.5
# The head moves a box in logit space; this margin keeps its logits finite (a quarter of a pixel in 256).
_EDGE = 1e-3


class BoxTrackingTask(Task):
    """Follow objects, each given by its box in the first frame; decode each box from the previous box and the tokens.

    Source: Orlova et al. 2026 (arXiv 2605.19137), streaming Waymo readout. Differs by default: the head moves the last
    box within the frame, and there are fewer Fourier bases. The published head predicts four unbounded numbers, which
    may not form a box, and whose small drift changes the high bases completely. `reference=True` selects it.
    """

    frame_axis: ClassVar[int] = 2
    query: ClassVar[Query | None] = Query("boxes", 4)

    def __init__(self, core: TemporalCore, options: TaskOptions) -> None:
        width, num_heads = options.readout(heads=4)
        super().__init__(core, options)
        self.projection = build_projection(core.embed_dim, width)
        hidden = options.query_hidden_dim or width // 2
        self.query_encoder = QueryEncoder(4, width, hidden_dim=hidden, num_frequencies=options.bases)
        self.decoder = QueryDecoder(width, num_heads)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        self.reference = options.reference

    def queries_of(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the box of every object at its first visible frame, and the index of that frame."""
        frames = targets["boxes_visible"].int().argmax(-1)
        return {"boxes": at_frames(targets["boxes"], frames), "query_frames": frames}

    def init_readout(self, batch_size: int, num_queries: int, device: torch.device | str | None) -> State:
        """Remember the number of frames seen and the last boxes."""
        age = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return age, torch.zeros(batch_size, num_queries, 4, device=device)

    def read(
        self, features: Float[Tensor, "B T L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Return `boxes` (B, O, T, 4) as corners.

        Args:
            features: Outputs of the core.
            queries: `boxes` (B, O, 4), corners in [0, 1], and optionally `query_frames` (B, O), the frames they belong
                to, 0 by default. Ignore predictions before an object's query frame.
            state: The number of frames seen and the last boxes.
        """
        given = to_centers(at_least_single(queries["boxes"]))
        query_frames = queries.get("query_frames", torch.zeros_like(given[..., 0]))
        memory = self.projection(features)
        age, last = state
        boxes = []
        for t in range(features.shape[1]):
            start = torch.where((age[:, None] <= query_frames)[..., None], given, last)
            box = self._predict(start, memory[:, t])
            # No gradient through the last box: each frame learns to correct its input box, not to prepare the next.
            last, age = box.detach(), age + 1
            boxes.append(box)
        return {"boxes": to_corners(torch.stack(boxes, 2))}, (age, last)

    def _predict(self, start: Float[Tensor, "B O 4"], memory: Float[Tensor, "B L P"]) -> Float[Tensor, "B O 4"]:
        """Predict the boxes of a frame; input and output boxes are center and size."""
        change = at_least_single(self.head(self.decoder(self.query_encoder(start).to(memory.dtype), memory)))
        return change if self.reference else torch.sigmoid(torch.logit(start, eps=_EDGE) + change)

    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Compare with `boxes` (B, O, T, 4) and `boxes_visible` (B, O, T).

        The loss is smooth L1 of center and size plus generalized IoU. The mean is over visible boxes after each
        object's first visible frame; if there are none, the loss is zero.
        """
        mask = after_first_visible(targets["boxes_visible"])
        predicted, wanted = predictions["boxes"][mask], targets["boxes"][mask].to(predictions["boxes"].dtype)
        distance = functional.smooth_l1_loss(to_centers(predicted), to_centers(wanted), reduction="none").mean(-1)
        _, generalized = box_overlap(predicted, wanted)
        return (distance + _GIOU_WEIGHT * (1 - generalized)).sum() / max(1, len(wanted))


def _hold_boxes(nothing: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    del nothing
    return {"boxes": hold(targets["boxes"], targets["boxes_visible"].int().argmax(-1))}


BOX_TRACKING = TaskSpec(
    facts=facts_of("box_tracking"),
    build=BoxTrackingTask,
    build_metric=BoxTrackingMetric,
    trivial=TrivialAnswer(words="the box stays where it was given", fit=fit_nothing, answer=_hold_boxes),
)
