"""Training from cached features against encoding again in every epoch: `vidflow bench CONFIG.yaml --only cached`.

Both train the same core on the same clips in batches of the same size. One reads features as training does. The other
first decodes the videos and runs the encoder. Validation and snapshots are the same for both, and are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.bench.clock import ROUNDS, Ratio, Seconds, Work, median, ratio, take_turns
from pipelines.bench.cores import train_on
from pipelines.bench.workers import decode_frames
from pipelines.extract import build_extractor
from pipelines.placement import place_workers, this_machine
from vidflow.config.encoder import encoder_title
from vidflow.config.roots import root_path
from vidflow.config.schema import Config, Trial
from vidflow.config.search import draw_candidates
from vidflow.stages.clips import ChosenClip
from vidflow.stages.experiment import Experiment, dense_features, is_reduced_from_cache
from vidflow.stages.extract import Extractor
from vidflow.store.features import FeatureReader, clip_order
from vidflow.training.learner import Learner, seeded
from vidflow.training.optim import Optimisation, build_optimizer
from vidflow.training.recipe import build_module, module_recipe
from vidflow.training.trial import stored_feed

# Number of clips in a round, in whole batches; their time per clip is taken as that of the epoch.
_NUM_TRAINED = 320
_NUM_ENCODED = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRow:
    """One core; all seconds are per clip.

    Attributes:
        core: Its name.
        num_clips: Clips of an epoch.
        cached: Seconds of reading and training.
        decode: Seconds from the video to frames in memory.
        encode: Seconds from frames to tokens; a reducer of cached tokens is left out.
        train: Seconds of training on tokens in memory.
        speedup: Time of decoding, encoding and training over time of reading and training.
        bound: The speed-up if reading took no time.
    """

    core: str
    num_clips: int
    cached: float
    decode: float
    encode: float
    train: float
    speedup: Ratio
    bound: Ratio

    def __str__(self) -> str:
        """Return the line."""
        again = self.decode + self.encode + self.train
        parts = (1e3 * part for part in (self.cached, self.decode, self.encode, self.train))
        return (
            f"{self.core:<18} {1 / (self.cached * self.num_clips):>9.4f} {1 / (again * self.num_clips):>9.4f} "
            f"{self.speedup!s:>14} {self.bound!s:>14} " + " ".join(f"{part:>8.2f}" for part in parts)
        )


HEADER = (
    f"{'core':<18} {'epochs/s':>9} {'encoding':>9} {'times':>14} {'at most':>14} {'ms/clip':>8} {'decode':>8} "
    f"{'encode':>8} {'train':>8}"
)


def measure_cached(experiment: Experiment) -> Iterator[str]:
    """Yield one line per core of the search; shards and features must exist."""
    config = experiment.config
    yield (
        f"cached: epochs/s from cached features, and encoding again; how many times as many, and how many if reading "
        f"cost nothing; milliseconds of a clip cached, and of its parts otherwise; {encoder_title(config.encoder)} at "
        f"{config.video.size} pixels, in brackets by processor time"
    )
    yield HEADER
    by_core: dict[str, Trial] = {}
    for trial in draw_candidates(config)[0]:
        by_core.setdefault(trial.core, trial)
    for name in config.features:
        trials = [trial for trial in by_core.values() if trial.features == name]
        if trials:
            yield from map(str, measure_features(experiment, name, trials))


def measure_features(
    experiment: Experiment, name: str, trials: Sequence[Trial], *, rounds: int = ROUNDS
) -> list[CachedRow]:
    """Time decoding, encoding, and every core's training from memory and from the cache, in turns."""
    config = experiment.config
    reader = FeatureReader(experiment.features[name].directory)
    device = torch.device(place_workers(config.resources, "trials", this_machine()).device)
    clips = {clip.key: clip for unit in experiment.scanned_shards.units for clip in unit.clips}
    indices = np.flatnonzero(np.asarray(reader.splits) == config.trials.splits.train)
    order = indices[clip_order(len(indices), seed=trials[0].seed, epoch=1)]
    source = _Source(config, name, [clips[reader.keys[index]] for index in order[:_NUM_ENCODED]])
    torch.set_num_threads(max(1, int(config.resources.trials.num_cpus)))
    works: dict[str, Work] = {"decode": source.decode, "encode": source.encode}
    trained = {}
    for trial in trials:
        trained[trial.core] = order[: max(1, _NUM_TRAINED // trial.batch_size) * trial.batch_size]
        training = _Training(trial, reader, trained[trial.core], device)
        works |= {f"train {trial.core}": training.from_memory, f"cached {trial.core}": training.from_cache}
    times = take_turns(works, device, rounds=rounds)
    decode, encode = (times[part] / source.num_clips for part in ("decode", "encode"))
    return [
        _row(
            trial.core,
            len(indices),
            decode,
            encode,
            times[f"train {trial.core}"] / len(trained[trial.core]),
            times[f"cached {trial.core}"] / len(trained[trial.core]),
        )
        for trial in trials
    ]


def _row(core: str, num_clips: int, decode: Seconds, encode: Seconds, train: Seconds, cached: Seconds) -> CachedRow:
    again = decode + encode + train
    return CachedRow(
        core=core,
        num_clips=num_clips,
        cached=median(cached),
        decode=median(decode),
        encode=median(encode),
        train=median(train),
        speedup=ratio(again, cached),
        bound=ratio(again, train),
    )


class _Source:
    """Some clips as videos, and the encoder.

    Attributes:
        num_clips: Number of clips.
    """

    def __init__(self, config: Config, name: str, clips: Sequence[ChosenClip]) -> None:
        features = config.features[name]
        dense = dense_features(features) if is_reduced_from_cache(features) else features
        nowhere = root_path(config) / "bench"
        metadata = {"class_names": [], "fingerprint": "", "num_frames": config.video.sampling.num_frames}
        placement = place_workers(config.resources, "extract", this_machine())
        self._extractor: Extractor = build_extractor(config, dense, nowhere, nowhere, metadata, placement)
        self._video, self._clips, self.num_clips = config.video, clips, len(clips)
        self._batch = -(-config.resources.frames_per_batch // config.video.sampling.num_frames)
        self._frames = torch.empty(0)
        self.decode()

    def decode(self) -> None:
        """Decode the clips from their videos, as sharding does."""
        decoded = [decode_frames(clip, self._video) for clip in self._clips]
        self._frames = torch.from_numpy(np.stack(decoded))

    def encode(self) -> None:
        """Encode the clips decoded last, batch by batch."""
        for frames in self._frames.split(self._batch):
            self._extractor.encode(frames)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class _Training:
    """Training of one core on some clips; each call continues from the last step."""

    def __init__(self, trial: Trial, reader: FeatureReader, order: np.ndarray, device: torch.device) -> None:
        with seeded(trial.seed, 0, torch.device("cpu")):
            task = build_module(module_recipe(trial, reader)).to(device)
        self._trial, self._order = trial, order
        feed = stored_feed(trial, reader, task, device)
        self._learner = Learner(
            key="bench",
            module=task,
            optimizer=build_optimizer(task, weight_decay=trial.weight_decay),
            feed=feed,
            optimisation=Optimisation.of(trial),
            device=device,
        )
        self._batches = list(feed.batches(order, batch_size=trial.batch_size, epoch=1))

    def from_cache(self) -> None:
        """Train as a trial does."""
        rates = [self._trial.learning_rate] * len(self._batches)
        self._learner.train(self._order, epoch=1, learning_rates=rates)

    def from_memory(self) -> None:
        """Take the same steps on tokens that are on the device."""
        self._learner.task.train()
        train_on(self._batches, self._learner.task, self._learner.optimizer, self._trial, self._trial.precision)
