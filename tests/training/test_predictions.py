import numpy as np
import torch

from vidflow.training.predictions import Answers, KeptPredictions


def _answers(start, predictions, **targets):
    size = len(next(iter(predictions.values())))
    return Answers(np.arange(start, start + size), targets, predictions, torch.zeros(()))


def test_all_clips_of_a_classification_are_kept_with_their_labels():
    kept = KeptPredictions()
    logits = torch.randn(40, 3, 5)
    labels = torch.arange(40) % 5
    kept.add(_answers(100, {"logits": logits[:32]}, label=labels[:32]))
    kept.add(_answers(132, {"logits": logits[32:].bfloat16()}, label=labels[32:]))
    tensors = kept.tensors()
    assert tensors["indices"].tolist() == list(range(100, 140))
    assert torch.equal(tensors["labels"], labels)
    assert tensors["logits"].dtype == torch.float32
    assert torch.equal(tensors["logits"][:32], logits[:32, -1])
    assert torch.equal(tensors["frame_classes"][:32], logits[:32].argmax(-1).int())


def test_of_dense_answers_the_first_clips_are_kept():
    kept = KeptPredictions()
    depth = torch.rand(24, 2, 8, 8)
    for start in range(0, 24, 6):
        kept.add(_answers(start, {"depth": depth[start : start + 6]}))
    tensors = kept.tensors()
    assert tensors["indices"].tolist() == list(range(16))
    assert torch.equal(tensors["depth"], depth[:16].half())


def test_clips_with_fewer_objects_are_filled_up_with_zeros():
    kept = KeptPredictions()
    few, many = torch.rand(2, 1, 3, 4), torch.rand(2, 3, 3, 4)
    kept.add(_answers(0, {"boxes": few}))
    kept.add(_answers(2, {"boxes": many}))
    boxes = kept.tensors()["boxes"]
    assert boxes.shape == (4, 3, 3, 4)
    assert torch.equal(boxes[:2, :1], few)
    assert not boxes[:2, 1:].any()
    assert torch.equal(boxes[2:], many)
