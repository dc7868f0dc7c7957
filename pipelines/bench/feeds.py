"""Trials in which the encoder runs: `vidflow bench CONFIG.yaml --only feeds`.

All of it trains adapters in the config's own encoder, with the config's clips, whole batches and precision. The feed of
frames is compared with the same steps on frames in memory, the feed of the stored stream with that of frames, and a
training step with the plain forward pass.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pipelines import extract
from pipelines.bench.clock import ROUNDS, take_turns
from pipelines.bench.workers import peak_mib
from pipelines.placement import place_workers, this_machine
from vidflow.config.encoder import encoder_title
from vidflow.config.schema import Adaptation, Augmentation, Config, FeatureSet, Trial
from vidflow.models.encoder import skeleton
from vidflow.stages.experiment import Experiment
from vidflow.training.encoded_task import EncodedTask
from vidflow.training.encoding import Encoding
from vidflow.training.learner import Learner
from vidflow.training.optim import Optimisation, autocast, build_optimizer, step_optimizer
from vidflow.training.trial import build_encoded_trial

_USUAL = Augmentation(crop_area=(0.08, 1.0), flip=0.5, color_jitter=0.2)
_NUM_BATCHES = 20
_RATE = 1e-6
_MORE = 10


def measure_feeds(experiment: Experiment) -> Iterator[str]:
    """Yield the lines; shards must exist, and the stream that enters the middle block is stored first."""
    config = _adapted(experiment.config)
    inside = experiment.with_config(config)
    middle = {"middle": config.features["middle"]}
    extract.main(experiment.with_config(dataclasses.replace(config, features=middle)))
    device = torch.device(place_workers(config.resources, "trials", this_machine()).device)
    yield (
        f"feeds: {encoder_title(config.encoder)}, {config.video.sampling.num_frames} frames of "
        f"{config.encoder.img_size} pixels, batches of {_batch_size(config)} clips on {device.type}"
    )
    whole, upper = (_Steps(inside, device, feed="shards", adaptation=name) for name in ("whole", "upper"))
    prefix = _Steps(inside, device, feed="prefix", adaptation="upper")
    works = {
        "fed": whole.fed,
        "memory": whole.in_memory,
        "forward": whole.forward,
        "upper": upper.fed,
        "prefix": prefix.fed,
    }
    times = {name: float(np.median(each[0])) for name, each in take_turns(works, device, rounds=ROUNDS).items()}
    for what, value, wanted in (
        ("steps from shards, augmented, against frames in memory", times["memory"] / times["fed"], "at least 0.9"),
        ("waiting for data in them", whole.wait, "at most 0.1"),
        ("a training step against the forward pass", times["memory"] / times["forward"], "2.5 as derived"),
        ("frames, all blocks adapted, against the stored stream", times["fed"] / times["prefix"], "at least 1.8"),
        ("frames, the same blocks, against the stored stream", times["upper"] / times["prefix"], "1.4 as derived"),
    ):
        yield f"{what:<56} {value:>8.2f}  wanted: {wanted}"
    before = peak_mib()
    whole.fed(times=_MORE)
    yield f"{f'more memory for {_MORE} times the clips':<56} {peak_mib() - before:>+8.0f} MiB"


def _adapted(config: Config) -> Config:
    """Return the config with two adaptations, an augmentation, and the stream that enters the middle block."""
    middle = len(skeleton(config.encoder.name).blocks) // 2
    trial = Trial(features="middle", feed="prefix", adaptation="upper")
    return dataclasses.replace(
        config,
        features={"whole": FeatureSet(), "middle": FeatureSet(depths=[middle - 1], normalize=False)},
        adaptations={"whole": Adaptation(dropout=0.0), "upper": Adaptation(dropout=0.0, first_block=middle)},
        augmentations={"usual": _USUAL},
        trials=dataclasses.replace(config.trials, axes={}, trial=trial),
    )


def _batch_size(config: Config) -> int:
    return config.resources.clips_per_pass or 8


class _Steps:
    """Training steps of one trial on a few batches.

    Attributes:
        wait: Share of the last fed steps that went by in waiting for data.
    """

    def __init__(self, experiment: Experiment, device: torch.device, *, feed: Any, adaptation: str) -> None:
        config, is_shards = experiment.config, feed == "shards"
        trial = Trial(
            feed=feed,
            features="whole" if is_shards else "middle",
            adaptation=adaptation,
            augmentation="usual" if is_shards else None,
            core="mean",
            num_layers=1,
            batch_size=_batch_size(config),
            epochs=1,
        )
        clips = experiment.clips_of(trial.features, feed)
        encoding = Encoding.of(config, trial)
        assert encoding is not None
        built = build_encoded_trial(trial, clips, encoding, device)
        module = built.module.to(device)
        assert isinstance(module, EncodedTask)
        self._module, self._device = module, device
        self._learner = Learner(
            key="bench",
            module=module,
            optimizer=build_optimizer(module, weight_decay=trial.weight_decay),
            feed=built.feed,
            optimisation=Optimisation.of(trial),
            device=device,
        )
        train = np.flatnonzero(np.asarray(clips.splits) == config.trials.splits.train)
        self._order = np.resize(train, _NUM_BATCHES * trial.batch_size)
        self._batches = list(built.feed.batches(self._order, batch_size=trial.batch_size, epoch=1))
        self.wait = 0.0

    def fed(self, times: int = 1) -> None:
        """Train on what the feed gives."""
        order = np.tile(self._order, times)
        rates = [_RATE] * (times * _NUM_BATCHES)
        self.wait = self._learner.train(order, epoch=1, learning_rates=rates)["train/wait"]

    def in_memory(self) -> None:
        """Take the same steps on batches that are on the device."""
        self._module.train()
        for batch in self._batches:
            with autocast(self._device, "auto"):
                predictions = self._module(batch)
            torch.autograd.backward(self._module.task.loss(predictions, batch.targets))
            step_optimizer(self._learner.optimizer, learning_rate=_RATE, grad_clip=1.0)

    def forward(self) -> None:
        """Predict the same batches."""
        self._module.eval()
        with torch.inference_mode(), autocast(self._device, "auto"):
            for batch in self._batches:
                self._module(batch)


__all__ = ["measure_feeds"]
