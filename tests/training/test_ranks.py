import itertools
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from shard_sets import finish_shards

from vidflow.config.schema import (
    Adaptation,
    Augmentation,
    Config,
    Encoder,
    FeatureSet,
    Resources,
    Sampling,
    SplitNames,
    Trial,
    Video,
)
from vidflow.config.tasks import Objective
from vidflow.store.features import FeatureReader
from vidflow.store.shard_clips import ShardClips
from vidflow.training.encoding import Encoding
from vidflow.training.ranks import Ranks
from vidflow.training.snapshot import BEST, PREDICTIONS, load_result, read_tensors
from vidflow.training.trial import run_trial

# 22 training clips in batches of 7: the last one has a single clip, so one of two processes has none.
NUM_TRAIN, NUM_VAL, NUM_TEST = 22, 9, 5
TRIAL = Trial(
    core="gru",
    num_layers=1,
    readout_dim=16,
    readout_heads=2,
    epochs=3,
    batch_size=7,
    # AdamW divides a gradient by its size: where that is almost zero, rounding moves a weight by a part of this.
    learning_rate=3e-4,
    precision="float32",
)
CONFIG = Config(
    encoder=Encoder(name="test_vit", weights="random:0", img_size=32, dtype="float32"),
    video=Video(sampling=Sampling(num_frames=2), size=32),
    features={"base": FeatureSet()},
    adaptations={"late": Adaptation(first_block=3, dropout=0.0, rank_ratio=0.1)},
    augmentations={"lively": Augmentation(crop_area=(0.3, 1.0), color_jitter=0.4)},
    resources=Resources(clips_per_pass=2),
)
MASKED = replace(TRIAL, task="masked_tokens", epochs=2)
PREFIX = replace(TRIAL, feed="prefix", adaptation="late", core="mean", epochs=2)
SHARDS = replace(TRIAL, feed="shards", adaptation="late", augmentation="lively", core="mean", epochs=2)


@pytest.mark.parametrize(("num_clips", "batch_size", "size"), [(22, 7, 2), (22, 7, 3), (5, 3, 4), (8, 8, 5), (3, 9, 2)])
def test_the_processes_share_every_batch_out_among_them(num_clips, batch_size, size):
    order = np.random.default_rng(0).permutation(num_clips)
    parts = [Ranks(rank, size).part(order, batch_size=batch_size) for rank in range(size)]
    starts = [0] * size
    for step, start in enumerate(range(0, num_clips, batch_size)):
        batch = order[start : start + batch_size]
        seen = []
        for rank, part in enumerate(parts):
            mine = part.order[starts[rank] : starts[rank] + part.batch_size][: len(batch)]
            number = round(part.shares[step] * len(batch))
            # A feed makes batches of one size, and a smaller one at the end only.
            assert number in (part.batch_size, 0) or step == len(part.shares) - 1
            seen += list(mine[:number])
            starts[rank] += max(1, number)
        assert seen == list(batch)
        assert sum(part.shares[step] for part in parts) == pytest.approx(1)
    assert starts == [len(part.order) for part in parts]


def test_the_processes_predict_every_batch_once():
    clips = np.arange(23)
    own = [Ranks(rank, 3).whole_batches(clips, batch_size=5) for rank in range(3)]
    assert [list(each) for each in own] == [
        [*range(5), *range(15, 20)],
        [*range(5, 10), *range(20, 23)],
        [*range(10, 15)],
    ]
    assert len(Ranks(2, 3).whole_batches(clips[:4], batch_size=5)) == 0


@pytest.fixture(scope="module")
def features(tmp_path_factory, feature_set):
    return feature_set(
        tmp_path_factory.mktemp("features"),
        np.random.default_rng(1).normal(size=(NUM_TRAIN + NUM_VAL + NUM_TEST, 3, 1, 4, 16)),
        [index % 2 for index in range(NUM_TRAIN + NUM_VAL + NUM_TEST)],
        ["train"] * NUM_TRAIN + ["val"] * NUM_VAL + ["test"] * NUM_TEST,
    )


@pytest.fixture(scope="module")
def stream(tmp_path_factory, feature_set):
    """What enters the second block of the encoder."""
    return feature_set(
        tmp_path_factory.mktemp("stream"),
        np.random.default_rng(2).normal(size=(12, 2, 1, 4, 64)),
        [index % 2 for index in range(12)],
        ["train"] * 8 + ["val"] * 4,
        num_prefix_tokens=1,
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    coarse = np.random.default_rng(0).integers(0, 256, (12, 2, 4, 4, 3), dtype=np.uint8)
    frames = coarse.repeat(8, axis=2).repeat(8, axis=3)
    directory = tmp_path_factory.mktemp("shards")
    return finish_shards(directory, frames, [index % 2 for index in range(12)], ["train"] * 8 + ["val"] * 4)


def _train(clips: Path, directory: Path, trial: Trial, ranks: Ranks, *, num_epochs: int | None = None) -> list:
    torch.set_num_threads(1)
    results = run_trial(
        trial,
        (ShardClips if trial.feed == "shards" else FeatureReader)(clips),
        directory=directory,
        key="key",
        objective=Objective("val/loss", "min"),
        names=SplitNames(test="test") if trial.feed == "features" else SplitNames(),
        device="cpu",
        encoding=Encoding.of(CONFIG, trial),
        ranks=ranks,
    )
    return list(itertools.islice(results, num_epochs))


def _train_rank(rank: int, size: int, store: Path, clips: Path, directory: Path, trial: Trial, **options) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    # Only the first process may use the folder.
    own = directory if rank == 0 else directory / "of-others"
    _train(clips, own, trial, Ranks.current(), **options)
    assert rank == 0 or not own.exists()
    dist.destroy_process_group()


def _train_together(size: int, store: Path, *arguments, **options) -> None:
    """Run `_train` in several processes."""
    spawn = multiprocessing.get_context("spawn")
    target = partial(_train_rank, **options)
    processes = [spawn.Process(target=target, args=(rank, size, store, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size


@pytest.mark.slow
@pytest.mark.parametrize("trial", [TRIAL, MASKED, PREFIX, SHARDS], ids=["features", "masked", "prefix", "shards"])
def test_two_processes_train_like_one(trial, features, stream, shards, tmp_path):
    clips = {"features": features, "prefix": stream, "shards": shards}[trial.feed].directory
    alone = _train(clips, tmp_path / "alone", trial, Ranks())
    _train_together(2, tmp_path / "store", clips, tmp_path / "together", trial)
    together = load_result(tmp_path / "together").history
    assert len(together) == len(alone) == trial.epochs
    # Sums of a few single-precision gradients in another order, over up to 12 steps of AdamW.
    for ours, theirs in zip(together, alone, strict=True):
        for name in theirs.metrics.keys() - {"train/clips_per_second", "train/wait"}:
            assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-5, abs=1e-5), name
    for name in (BEST, PREDICTIONS):
        ours, theirs = (_without_key_biases(tmp_path / folder / name) for folder in ("together", "alone"))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def _without_key_biases(file: Path) -> dict[str, torch.Tensor]:
    """Read tensors but the biases of keys: softmax takes them out again, so their gradients are rounding alone."""
    tensors = read_tensors(file)[0]
    for name in tensors:
        if name.endswith("in_proj_bias"):
            query, _, value = tensors[name].chunk(3)
            tensors[name] = torch.cat([query, value])
    return tensors


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bytes(features, tmp_path):
    for number, (folder, num_epochs) in enumerate([("whole", 3), ("parts", 1), ("parts", 3)]):
        store = tmp_path / f"store-{number}"
        _train_together(2, store, features.directory, tmp_path / folder, TRIAL, num_epochs=num_epochs)
    assert (tmp_path / "whole" / BEST).read_bytes() == (tmp_path / "parts" / BEST).read_bytes()
