import math

import torch

from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, build_task


def test_the_loss_is_that_of_the_last_frame_plus_a_fraction_of_the_mean_over_frames():
    core = build_core("identity", embed_dim=8)
    task = build_task("classification", core, TaskOptions(num_classes=3, readout_dim=16, every_frame_weight=0.3))
    logits = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]], [[0.5, 0.1, 0.2], [2.0, 1.0, 0.0]]])
    labels = [2, 0]

    def entropy(clip, frame):
        row = logits[clip, frame].tolist()
        return math.log(sum(math.exp(value) for value in row)) - row[labels[clip]]

    last = (entropy(0, 1) + entropy(1, 1)) / 2
    every = sum(entropy(clip, frame) for clip in range(2) for frame in range(2)) / 4
    loss = task.loss({"logits": logits}, {"label": torch.tensor(labels)})
    torch.testing.assert_close(loss, torch.tensor(last + 0.3 * every))


def test_the_class_token_readout_sees_the_mean_class_token_alone():
    torch.manual_seed(0)
    core = build_core("mean", embed_dim=8)
    task = build_task("classification", core, TaskOptions(num_classes=3, class_token=True)).eval()
    tokens, prefix = torch.randn(2, 4, 1, 5, 8), torch.randn(2, 4, 2, 8)
    logits = task(tokens, prefix, {})["logits"]
    wanted = task.readout.classifier(core.output_norm(prefix[:, :, 0].mean(1)))
    torch.testing.assert_close(logits[:, -1], wanted)
    assert torch.equal(task(tokens + 1, prefix, {})["logits"], logits)
    assert float(task.readout.classifier.weight.std()) < 0.02
    assert not torch.equal(task.train()(tokens, prefix, {})["logits"], logits)  # dropout


def test_labels_are_smoothed_in_training_only():
    core = build_core("mean", embed_dim=8)
    options = TaskOptions(num_classes=4, class_token=True, every_frame_weight=0, label_smoothing=0.1)
    task = build_task("classification", core, options)
    logits, target = torch.randn(3, 2, 4), {"label": torch.tensor([0, 3, 1])}
    shares = torch.full((3, 4), 0.1 / 4)
    shares[range(3), target["label"]] += 0.9
    wanted = -(shares * logits[:, -1].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(task.train().loss({"logits": logits}, target), wanted)
    plain = -logits[:, -1].log_softmax(-1)[range(3), target["label"]].mean()
    torch.testing.assert_close(task.eval().loss({"logits": logits}, target), plain)
