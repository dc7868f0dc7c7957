import pytest
import torch

from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, build_task
from vidflow.models.tasks.box_tracking import after_first_visible


def make(**kwargs):
    torch.manual_seed(0)
    core = build_core("mean", embed_dim=16)
    return build_task("box_tracking", core, TaskOptions(readout_dim=32, **kwargs)).eval()


BOXES = torch.tensor([[[0.1, 0.2, 0.4, 0.6], [0.3, 0.3, 0.9, 0.8], [0.0, 0.5, 0.2, 1.0]]])


@torch.no_grad()
def test_many_objects_at_once_equal_each_object_alone():
    task, tokens = make().double(), torch.randn(1, 4, 1, 5, 16).double()
    boxes = BOXES.double()
    together = task(tokens, None, {"boxes": boxes})["boxes"]
    alone = torch.cat([task(tokens, None, {"boxes": boxes[:, i : i + 1]})["boxes"] for i in range(3)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_predicted_boxes_stay_boxes_within_the_frame_whatever_the_head_says():
    task, tokens = make(), 100 * torch.randn(1, 20, 1, 5, 16)
    task.head[2].weight.mul_(1000)
    boxes = task(tokens, None, {"boxes": BOXES})["boxes"]
    centers, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    assert (sizes >= 0).all()
    assert centers.min() >= 0
    assert centers.max() <= 1
    assert sizes.max() <= 1 + 1e-6


@torch.no_grad()
def test_a_head_that_says_nothing_leaves_the_box_where_it_is():
    task = make()
    task.head[2].weight.zero_()
    task.head[2].bias.zero_()
    boxes = task(torch.randn(1, 3, 1, 5, 16), None, {"boxes": BOXES[:, :2]})["boxes"]
    torch.testing.assert_close(boxes, BOXES[:, :2, None].expand(-1, -1, 3, -1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_object_that_appears_later_is_tracked_from_its_query_frame():
    task, tokens = make().double(), torch.randn(1, 5, 1, 5, 16).double()
    late = task(tokens, None, {"boxes": BOXES.double(), "query_frames": torch.tensor([[2, 0, 2]])})["boxes"]
    features = task.core(tokens[:, :, 0])[0]
    fresh, _ = task.read(features[:, 2:], {"boxes": BOXES.double()}, task.init_readout(1, 3, None))
    torch.testing.assert_close(late[:, [0, 2], 2:], fresh["boxes"][:, [0, 2]], rtol=1e-4, atol=1e-4)


def test_queries_are_the_boxes_at_their_first_visible_frame():
    boxes = torch.rand(1, 3, 4, 4)
    visible = torch.tensor([[[True, True, False, True], [False, False, True, True], [False] * 4]])
    queries = make().queries_of({"boxes": boxes, "boxes_visible": visible})
    assert queries["query_frames"].tolist() == [[0, 2, 0]]
    torch.testing.assert_close(queries["boxes"][0, :2], torch.stack([boxes[0, 0, 0], boxes[0, 1, 2]]))
    assert after_first_visible(visible).tolist() == [
        [[False, True, False, True], [False, False, False, True], [False] * 4]
    ]


def test_the_loss_leaves_out_hidden_boxes_absent_objects_and_the_given_box():
    task, boxes = make(), torch.rand(1, 2, 4, 2).repeat(1, 1, 1, 2) / 2 + torch.tensor([0, 0, 0.3, 0.3])
    visible = torch.tensor([[[True, True, False, True], [False] * 4]])
    predicted = boxes.clone()
    predicted[:, 0, [0, 2]] = float("nan")
    predicted[:, 1] = float("nan")
    targets = {"boxes": boxes, "boxes_visible": visible}
    assert task.loss({"boxes": predicted}, targets).item() == pytest.approx(0, abs=1e-6)
    predicted[:, 0, 3] += 0.3
    # Center off by 0.3 in both directions: smooth L1 (0.045 + 0.045) / 4, disjoint diagonal neighbours: GIoU -1/2.
    expected = (0.0225 + 0.5 * 1.5) / 2
    assert task.loss({"boxes": predicted}, targets).item() == pytest.approx(expected, abs=1e-5)
    nothing = {"boxes": boxes, "boxes_visible": torch.zeros_like(visible)}
    assert task.loss({"boxes": predicted}, nothing) == 0


def test_the_gradient_does_not_reach_back_through_the_last_box():
    task, tokens = make(), torch.randn(1, 3, 1, 5, 16)
    features = tokens[:, :, 0].requires_grad_()
    predictions, _ = task.read(features, {"boxes": BOXES}, task.init_readout(1, 3, None))
    (gradient,) = torch.autograd.grad(predictions["boxes"][:, :, 2].sum(), features)
    assert gradient[:, :2].abs().max() == 0
    assert gradient[:, 2].abs().max() > 0
