import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidflow.config.schema import Trial
from vidflow.errors import VidflowError
from vidflow.models.cores.build import build_core
from vidflow.models.cores.vtm import VtmCore
from vidflow.models.tasks import TaskOptions, build_metric, build_task
from vidflow.training.batches import iterate_batches
from vidflow.training.feeds import StoredFeed
from vidflow.training.learner import Learner, seeded
from vidflow.training.optim import Optimisation, build_optimizer

CPU = torch.device("cpu")


def _learner(reader, *, core="mean", batch_size=5, precision="float32", task=None) -> Learner:
    with seeded(0, 0, CPU):
        task = task or build_task(
            "classification",
            build_core(core, embed_dim=16, num_layers=1),
            TaskOptions(num_classes=3, readout_dim=16, readout_heads=2),
        )
    return Learner(
        key="trial-key",
        module=task,
        optimizer=build_optimizer(task, weight_decay=0.0),
        feed=StoredFeed(clips=reader, device=CPU, num_depths=1, arrays=(), unmerged=True, seed=0),
        optimisation=Optimisation.of(Trial(batch_size=batch_size, precision=precision)),
        device=CPU,
    )


def _train(learner, order, learning_rate):
    num_steps = math.ceil(len(order) / learner.optimisation.batch_size)
    return learner.train(order, epoch=4, learning_rates=[learning_rate] * num_steps)


def test_the_losses_are_means_over_clips_whatever_the_batches(noise_features):
    clips = np.arange(24)
    expected = []
    learner = _learner(noise_features)
    for batch in iterate_batches(noise_features, clips, batch_size=1, device=CPU):
        with torch.no_grad():
            expected.append(learner.task.loss(learner.task(batch.tokens, batch.prefix, {}), batch.targets).item())
    for batch_size in (5, 24):
        learner = _learner(noise_features, batch_size=batch_size)
        # Without a learning rate the weights stay, so the training loss is that of the initial weights.
        trained = _train(learner, clips, 0.0)["train/loss"]
        validated, _ = learner.validate(clips, build_metric("classification"), epoch=1)
        # Sums of 24 single-precision losses in another order.
        assert trained == pytest.approx(np.mean(expected), rel=1e-5)
        assert validated["val/loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_validation_changes_nothing_and_agrees_with_the_kept_predictions(noise_features):
    learner = _learner(noise_features, core="gated_transformer")
    before = {name: value.clone() for name, value in learner.task.state_dict().items()}
    metrics, predictions = learner.validate(np.arange(24, 36), build_metric("classification"), epoch=1)
    assert all(torch.equal(value, before[name]) for name, value in learner.task.state_dict().items())
    hits = predictions["logits"].argmax(-1) == predictions["labels"]
    assert metrics["val/top1"] == hits.double().mean().item()
    assert metrics["val/top1_low"] < metrics["val/top1"] < metrics["val/top1_high"]
    assert predictions["indices"].tolist() == list(range(24, 36))


def test_training_lowers_the_loss_on_what_it_sees(noise_features):
    learner = _learner(noise_features, core="gru")
    losses = [_train(learner, np.arange(24), 1e-2)["train/loss"] for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_gives_nearly_the_same_loss(noise_features):
    values = {}
    for precision in ("float32", "bfloat16"):
        learner = _learner(noise_features, core="gated_transformer", precision=precision)
        values[precision] = _train(learner, np.arange(24), 0.0)["train/loss"]
    # bfloat16 has 8 bits: a relative error of 2^-8 per product, and a loss near 1.3 from logits near 0.
    assert values["bfloat16"] == pytest.approx(values["float32"], rel=2e-2)
    assert values["bfloat16"] != values["float32"]


def test_a_loss_that_is_not_finite_names_trial_epoch_step_and_rate(noise_features):
    learner = _learner(noise_features)
    rates = [0.0, 0.0, 1e30, 1e30, 1e30]
    message = r"trial trial-key: the loss is (nan|inf) at step [45] of 5 in epoch 4, with learning rate 1e\+30; try"
    with pytest.raises(VidflowError, match=message):
        learner.train(np.arange(24), epoch=4, learning_rates=rates)


def test_a_validation_loss_that_is_not_finite_is_an_error_too(noise_features):
    learner = _learner(noise_features)
    torch.nn.init.constant_(learner.task.readout.classifier.bias, math.inf)
    with pytest.raises(VidflowError, match="validation split is nan after epoch 2"):
        learner.validate(np.arange(24, 36), build_metric("classification"), epoch=2)


def test_random_numbers_depend_on_seed_and_epoch_alone_and_leave_the_process_alone():
    def draw(seed, epoch):
        with seeded(seed, epoch, CPU):
            return torch.rand(4)

    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    first = draw(1, 2)
    assert torch.equal(torch.rand(3), undisturbed)
    assert torch.equal(draw(1, 2), first)
    others = [draw(seed, epoch) for seed, epoch in [(1, 1), (2, 1), (1, 3), (0, 3), (2**31 - 1, 0)]]
    assert not any(torch.equal(first, other) for other in others)


def test_a_clips_draws_depend_on_neither_its_batch_nor_its_passes(noise_features):
    def gradients(order, **passes):
        torch.manual_seed(0)
        core = VtmCore(16, 2, dropout=0.0)
        options = TaskOptions(num_classes=3, readout_dim=16, readout_heads=2)
        learner = replace(_learner(noise_features, task=build_task("classification", core, options)), **passes)
        (batch,) = learner.feed.batches(np.array(order), batch_size=len(order), epoch=4)
        learner.task.train()
        loss = learner._accumulate(batch, 1.0, epoch=4)
        return loss, [parameter.grad for parameter in learner.task.parameters()]

    whole = gradients(range(6))
    # Sums over the clips in another order.
    torch.testing.assert_close(gradients(range(6), clips_per_pass=2), whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients([3, 5, 1, 0, 4, 2]), whole, rtol=1e-4, atol=1e-6)
