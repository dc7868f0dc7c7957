import math

import pytest
import torch

from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, build_task

POINTS = torch.tensor([[[0.1, 0.2], [0.7, 0.4], [0.5, 0.9]]]).double()
FRAMES = torch.tensor([[0, 2, 3]])


def make(**kwargs):
    torch.manual_seed(0)
    core = build_core("identity", embed_dim=16)
    return build_task("point_tracking", core, TaskOptions(readout_dim=32, **kwargs)).double().eval()


@pytest.mark.parametrize("reference", [False, True])
@torch.no_grad()
def test_many_points_at_once_equal_each_point_alone(reference):
    task, tokens = make(reference=reference), torch.randn(1, 5, 1, 4, 16).double()
    together = task(tokens, None, {"points": POINTS, "query_frames": FRAMES})
    for i in range(3):
        queries = {"points": POINTS[:, i : i + 1], "query_frames": FRAMES[:, i : i + 1]}
        alone = task(tokens, None, queries)
        for key, value in together.items():
            torch.testing.assert_close(value[:, i : i + 1], alone[key], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_at_its_query_frame_a_point_is_known_for_certain():
    predictions = make()(torch.randn(1, 5, 1, 4, 16).double(), None, {"points": POINTS, "query_frames": FRAMES})
    for i, frame in enumerate(FRAMES[0].tolist()):
        assert torch.equal(predictions["points"][0, i, frame], POINTS[0, i])
        assert predictions["visibility_logits"][0, i, frame] == 10
        assert predictions["uncertainty_logits"][0, i, frame] == -10


@pytest.mark.parametrize(("reference", "is_used"), [(False, True), (True, False)])
@torch.no_grad()
def test_what_the_query_frame_shows_matters_afterwards_unless_as_in_the_reference(reference, is_used):
    # The core has no memory, so only the query itself can carry what was seen.
    task, tokens = make(reference=reference), torch.randn(1, 5, 1, 4, 16).double()
    changed = tokens.clone()
    changed[:, 2] = changed[:, 2].roll(1, dims=-1)
    queries = {"points": POINTS, "query_frames": FRAMES}
    gap = (task(changed, None, queries)["points"] - task(tokens, None, queries)["points"]).abs()[0]
    assert bool(gap[1, 3:].max() > 1e-4) is is_used
    # The points of other query frames are unmoved after this frame, and this one before it.
    assert gap[0, 3:].max() < 1e-9
    assert gap[1, :2].max() < 1e-9


@torch.no_grad()
def test_a_query_frame_of_zero_is_the_default():
    task, tokens = make(), torch.randn(1, 5, 1, 4, 16).double()
    zero = task(tokens, None, {"points": POINTS, "query_frames": torch.zeros(1, 3, dtype=torch.int64)})
    torch.testing.assert_close(task(tokens, None, {"points": POINTS}), zero, rtol=0, atol=0)


def test_queries_are_the_points_at_their_query_frames():
    points = torch.rand(1, 3, 5, 2)
    queries = make().queries_of({"points": points, "query_frames": FRAMES})
    torch.testing.assert_close(queries["points"][0], torch.stack([points[0, 0, 0], points[0, 1, 2], points[0, 2, 3]]))


def test_the_loss_is_huber_on_pixels_and_two_cross_entropies():
    points = torch.full((1, 2, 3, 2), 0.5)
    visible = torch.tensor([[[True, True, False], [False, False, False]]])
    predicted = points.clone()
    # 10 pixels to the right: beyond the 4 of the Huber loss and the 6 of the uncertainty.
    predicted[0, 0, 1, 0] += 10 / 256
    predicted[:, 1] = float("nan")
    predictions = {
        "points": predicted,
        "visibility_logits": torch.tensor([[[9.0, 0.5, -0.3], [7.0, 7.0, 7.0]]]),
        "uncertainty_logits": torch.tensor([[[9.0, 0.2, 5.0], [7.0, 7.0, 7.0]]]),
    }
    targets = {"points": points, "points_visible": visible, "query_frames": torch.zeros(1, 2, dtype=torch.int64)}

    def entropy(logit, is_true):
        return math.log1p(math.exp(-logit if is_true else logit))

    huber, uncertain = 4 * (10 - 4 / 2), entropy(0.2, True)
    seen = (entropy(0.5, True) + entropy(-0.3, False)) / 2
    assert make().loss(predictions, targets).item() == pytest.approx(0.05 * huber + uncertain + seen, rel=1e-5)
    targets["points_visible"] = torch.zeros_like(visible)
    assert make().loss(predictions, targets) == 0


@torch.no_grad()
def test_before_training_a_point_stays_within_the_widest_circle_of_the_metric():
    predictions = make()(torch.randn(1, 5, 1, 4, 16).double(), None, {"points": POINTS})
    distance = 256 * (predictions["points"] - POINTS[:, :, None]).norm(dim=-1)
    assert distance[..., 1:].min() > 0
    assert distance.max() < 16
