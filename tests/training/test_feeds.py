import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_sets import finish_features
from shard_sets import finish_shards

from vidflow.config.schema import (
    Adaptation,
    Augmentation,
    Config,
    Encoder,
    FeatureSet,
    Resources,
    Sampling,
    StageResources,
    Trial,
    Video,
)
from vidflow.config.tasks import Objective
from vidflow.errors import VidflowError
from vidflow.loading import load
from vidflow.models.cores.build import build_core
from vidflow.models.encoder import shape_of, skeleton
from vidflow.models.encoder.configured import build_clip_encoder
from vidflow.models.tasks import TaskOptions, build_task
from vidflow.records import ClipTokens
from vidflow.training.encoding import Encoding, build_encoded
from vidflow.training.feeds import ShardFeed, StoredFeed
from vidflow.training.learner import seeded
from vidflow.training.snapshot import BEST, read_tensors
from vidflow.training.trained_task import load_encoded, load_task
from vidflow.training.trial import run_trial

CPU = torch.device("cpu")
NUM_FRAMES, SIDE = 2, 32
SETTINGS = Encoder(name="test_vit", weights="random:0", img_size=SIDE, dtype="float32")
STREAM = FeatureSet(depths=[2], normalize=False)
LATE = Adaptation(first_block=3, dropout=0.0, rank_ratio=0.1)
LIVELY = Augmentation(crop_area=(0.3, 1.0), color_jitter=0.4, randaugment_layers=2, erasing=0.5, temporal_shift=1)
TRIAL = Trial(
    feed="shards",
    adaptation="late",
    core="mean",
    num_layers=1,
    readout_dim=16,
    readout_heads=2,
    epochs=1,
    batch_size=4,
    learning_rate=3e-3,
    precision="float32",
)


def _config(*, late=LATE, **resources) -> Config:
    return Config(
        encoder=SETTINGS,
        video=Video(sampling=Sampling(num_frames=NUM_FRAMES), size=SIDE),
        features={"base": FeatureSet(), "stream": STREAM},
        adaptations={"late": late},
        augmentations={"lively": LIVELY},
        resources=Resources(**resources),
    )


def _start(clips, directory, trial=TRIAL, config=None):
    return run_trial(
        trial,
        clips,
        directory=directory,
        key="key",
        objective=Objective("val/loss", "min"),
        device="cpu",
        encoding=Encoding.of(config or _config(), trial),
    )


def _run(*arguments, **named):
    return list(_start(*arguments, **named))


def _weights(directory) -> dict[str, torch.Tensor]:
    return read_tensors(directory / BEST)[0]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twelve clips of coarse noise in two classes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, NUM_FRAMES, 4, 4, 3), dtype=np.uint8)
    frames = coarse.repeat(SIDE // 4, axis=2).repeat(SIDE // 4, axis=3)
    splits = ["train"] * 8 + ["val"] * 4
    return finish_shards(tmp_path_factory.mktemp("shards"), frames, [index % 2 for index in range(12)], splits)


def _extract(shards, features: FeatureSet, directory):
    """The features of the shards, as `extract` makes them."""
    encoder = build_clip_encoder(SETTINGS, features, device="cpu")
    feed = ShardFeed(clips=shards, device=CPU, arrays=(), img_size=SIDE, augmentation=None, seed=0, num_threads=1)
    clips = []
    for batch in feed.batches(np.arange(len(shards)), batch_size=len(shards), epoch=None):
        for index, arrays in zip(batch.indices, encoder.encode(batch.frames).clips(), strict=True):
            clips.append(
                ClipTokens(
                    key=shards.keys[index],
                    label=shards.labels[index],
                    split=shards.splits[index],
                    pts_seconds=shards[int(index)].pts_seconds,
                    tokens=arrays.tokens,
                    prefix=arrays.prefix,
                    counts=arrays.counts,
                )
            )
    metadata = {
        **shards.metadata,
        "embed_dim": encoder.embed_dim,
        "num_prefix_tokens": encoder.num_prefix_tokens,
        "grid": list(encoder.grid),
        "depths": list(encoder.depths),
        "encoder": encoder.describe(),
    }
    return finish_features(directory, {"a.arrow": clips}, metadata)


@pytest.fixture(scope="module")
def stream(shards, tmp_path_factory):
    """The stream that enters block 3, in half precision."""
    return _extract(shards, STREAM, tmp_path_factory.mktemp("stream"))


def _gradients(clips, trial):
    """The gradients of the first step on all training clips."""
    config = _config()
    with seeded(0, 0, CPU):
        task = build_task("classification", build_core("mean", embed_dim=64, num_layers=1), TaskOptions(num_classes=2))
        part = Encoding.of(config, trial).part
        module = build_encoded(replace(part, first_block=3 if trial.feed == "prefix" else None), task, device="cpu")
    if trial.feed == "prefix":
        feed = StoredFeed(clips=clips, device=CPU, num_depths=1, arrays=(), unmerged=True, seed=0)
    else:
        feed = ShardFeed(clips=clips, device=CPU, arrays=(), img_size=SIDE, augmentation=None, seed=0, num_threads=1)
    (batch,) = feed.batches(np.arange(8), batch_size=8, epoch=1)
    module.train()
    task.loss(module(batch), batch.targets).backward()
    return {name: each.grad for name, each in module.named_parameters() if each.grad is not None}


def test_frames_and_the_stored_stream_give_the_same_gradients(shards, stream):
    from_frames = _gradients(shards, TRIAL)
    from_stream = _gradients(stream, replace(TRIAL, feed="prefix", features="stream"))
    assert from_frames.keys() == from_stream.keys()
    assert any(name.startswith("encoder.adapters.3.") for name in from_frames)
    assert not any(name.startswith("encoder.adapters.2.") for name in from_frames)
    for name, gradient in from_frames.items():
        # The stream is stored in half precision, with errors of 2^-12, and differences of large sums amplify them.
        assert (from_stream[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, name


def test_a_trial_on_a_stored_stream_trains_and_holds_nothing_that_is_frozen(stream, tmp_path):
    first, last = _run(stream, tmp_path, replace(TRIAL, feed="prefix", features="stream", epochs=2))
    assert last.metrics["train/loss"] < first.metrics["train/loss"]
    assert not any("vit" in name or ".blocks." in name for name in _weights(tmp_path))
    module, identity = load_encoded(tmp_path / BEST)
    assert (module.first_block, identity.features["fingerprint"]) == (3, stream.directory.name)


def test_a_trial_on_frames_that_was_stopped_goes_on_as_if_it_had_not_been(shards, tmp_path):
    trial, config = replace(TRIAL, augmentation="lively", epochs=2), _config(late=replace(LATE, dropout=0.5))
    stopped = _start(shards, tmp_path / "stopped", trial, config)
    next(stopped)
    stopped.close()
    for name in ("stopped", "calm"):
        list(_start(shards, tmp_path / name, trial, config))
    assert (tmp_path / "stopped" / BEST).read_bytes() == (tmp_path / "calm" / BEST).read_bytes()
    # Neither does the number of threads that read and augment change a bit.
    _run(shards, tmp_path / "wide", trial, replace(config, resources=Resources(trials=StageResources(num_cpus=3))))
    assert (tmp_path / "wide" / BEST).read_bytes() == (tmp_path / "calm" / BEST).read_bytes()


def test_without_an_adaptation_frames_give_what_stored_features_give(shards, tmp_path):
    stored = _extract(shards, FeatureSet(), tmp_path / "features")
    frozen = replace(TRIAL, adaptation=None, epochs=2)
    from_frames = _run(shards, tmp_path / "shards", frozen)
    cached = _run(stored, tmp_path / "cached", replace(frozen, feed="features"))
    for ours, theirs in zip(from_frames, cached, strict=True):
        assert ours.metrics["val/loss"] == pytest.approx(theirs.metrics["val/loss"], rel=1e-3)
    # Its task runs behind the stock encoder, so it can be used alone.
    assert not load_task(tmp_path / "shards").training


def test_a_task_behind_an_adapted_encoder_is_not_loaded_alone(shards, tmp_path):
    (epoch,) = _run(shards, tmp_path)
    with pytest.raises(VidflowError, match=r"adapted its encoder.* merge with `vidflow merge-adapters"):
        load_task(tmp_path)
    module, identity = load_encoded(tmp_path / BEST)
    assert identity.num_parameters == sum(each.numel() for each in module.parameters())
    assert identity.encoder["weights_sha256"] == module.frozen.weights_sha256
    assert identity.features["shards"] == shards.directory.name
    feed = ShardFeed(clips=shards, device=CPU, arrays=(), img_size=SIDE, augmentation=None, seed=0, num_threads=1)
    (batch,) = feed.batches(np.arange(8, 12), batch_size=4, epoch=None)
    with torch.inference_mode():
        loss = module.task.loss(module(batch), batch.targets)
    assert float(loss) == pytest.approx(epoch.metrics["val/loss"], rel=1e-6)


def test_the_sum_of_passes_is_the_batch_and_checkpointing_changes_no_bit(shards, tmp_path):
    whole = _run(shards, tmp_path / "whole")
    parts = _run(shards, tmp_path / "parts", config=_config(clips_per_pass=1))
    assert parts[0].metrics["train/loss"] == pytest.approx(whole[0].metrics["train/loss"], rel=1e-5)
    assert parts[0].metrics["val/loss"] == pytest.approx(whole[0].metrics["val/loss"], rel=1e-5)
    _run(shards, tmp_path / "again", config=_config(checkpointing=True))
    first, again = _weights(tmp_path / "whole"), _weights(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_augmented_clips_do_not_depend_on_the_number_of_threads_or_their_neighbours(shards):
    def read(num_threads, order, batch_size, epoch=3, seed=1):
        feed = ShardFeed(
            clips=shards, device=CPU, arrays=(), img_size=24, augmentation=LIVELY, seed=seed, num_threads=num_threads
        )
        batches = feed.batches(np.asarray(order), batch_size=batch_size, epoch=epoch)
        return {int(i): each.clone() for batch in batches for i, each in zip(batch.indices, batch.frames, strict=True)}

    alone, together = read(1, range(8), 1), read(4, [7, 3, 1, 0, 2, 6, 5, 4], 3)
    assert all(torch.equal(alone[index], together[index]) for index in range(8))
    for other in (read(1, range(8), 8, epoch=4), read(1, range(8), 8, seed=2)):
        assert not any(torch.equal(alone[index], other[index]) for index in range(8))


def test_an_augmented_trial_says_how_long_it_waits_and_validates_plain_clips(shards, tmp_path):
    lively = replace(TRIAL, augmentation="lively", learning_rate=1e-12)
    (augmented,), (plain,) = (
        _run(shards, tmp_path / "a", lively),
        _run(shards, tmp_path / "b", replace(lively, augmentation=None)),
    )
    assert augmented.metrics["train/loss"] != plain.metrics["train/loss"]
    assert augmented.metrics["val/loss"] == pytest.approx(plain.metrics["val/loss"], rel=1e-5)
    assert 0 < augmented.metrics["train/wait"] < 1


def test_memory_of_a_shard_feed_does_not_grow_with_the_number_of_clips(shards):
    feed = ShardFeed(clips=shards, device=CPU, arrays=(), img_size=SIDE, augmentation=None, seed=0, num_threads=2)
    taken = set()
    for batch in feed.batches(np.tile(np.arange(12), 20), batch_size=4, epoch=1):
        taken.add(batch.frames.data_ptr())
        del batch
    # The batch in use and those that threads fill ahead of it; their memory is used again and again.
    assert len(taken) <= 5


@pytest.mark.slow
def test_a_trial_on_frames_killed_in_an_epoch_ends_in_the_same_bytes(shards, tmp_path):
    trial = replace(TRIAL, augmentation="lively", epochs=3)
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
import torch
from dataclasses import replace
from test_feeds import TRIAL, _config, _run
from vidflow.store.shard_clips import ShardClips
torch.set_num_threads({torch.get_num_threads()})
from pathlib import Path
trial = replace(TRIAL, augmentation="lively", epochs=3)
_run(ShardClips(Path({str(shards.directory)!r})), Path({str(tmp_path / "killed")!r}), trial)
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    while child.poll() is None and not (tmp_path / "killed" / BEST).exists():
        time.sleep(0.01)
    child.kill()
    child.wait()
    _run(shards, tmp_path / "killed", trial)
    _run(shards, tmp_path / "calm", trial)
    assert (tmp_path / "killed" / BEST).read_bytes() == (tmp_path / "calm" / BEST).read_bytes()


@pytest.mark.parametrize("offsets", [(), (-1, 0, 0, 0), (1, 0, 0, 0)])
def test_a_trial_with_an_adapted_encoder_streams_unless_a_head_sees_later_frames(shards, tmp_path, offsets):
    late = replace(LATE, temporal_embedding=False, offsets=list(offsets[: _num_heads()]))
    _run(shards, tmp_path, config=_config(late=late))
    if any(offset > 0 for offset in offsets):
        with pytest.raises(VidflowError, match="sees later frames, so it cannot run frame by frame; merge it"):
            load(tmp_path)
        return
    predictor = load(tmp_path)
    module, _ = load_encoded(tmp_path / BEST)
    feed = ShardFeed(clips=shards, device=CPU, arrays=(), img_size=SIDE, augmentation=None, seed=0, num_threads=1)
    (batch,) = feed.batches(np.arange(1), batch_size=1, epoch=None)
    with torch.inference_mode():
        whole = module(batch)["logits"][0].numpy()
    for frame, logits in zip(batch.frames[0].numpy(), whole, strict=True):
        # Adapters are merged, which rounds float32 weights once.
        np.testing.assert_allclose(predictor.model.step(frame)["logits"], logits, atol=1e-4)


def _num_heads() -> int:
    return shape_of(skeleton("test_vit")).num_heads
