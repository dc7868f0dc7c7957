"""From a trained trial to a file of weights, to features, to a trial on them, to a stream."""

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_sets import finish_features
from shard_sets import finish_shards

from pipelines.cli import main
from pipelines.extract import extract_units
from vidflow.config.fingerprints import clip_settings
from vidflow.config.schema import Adaptation, Config, Encoder, FeatureSet, Sampling, Trial, Video
from vidflow.config.tasks import Objective
from vidflow.errors import VidflowError
from vidflow.loading import load_file
from vidflow.models.encoder.configured import build_clip_encoder
from vidflow.records import ClipTokens
from vidflow.stages.extract import Extractor
from vidflow.stages.finish import read_manifest
from vidflow.store.features import FeatureFile, FeatureReader
from vidflow.store.shard_clips import ShardClips
from vidflow.training.encoding import Encoding
from vidflow.training.merge_adapters import merge_trial
from vidflow.training.snapshot import BEST, _write_tensors, read_tensors
from vidflow.training.trained_task import load_encoded
from vidflow.training.trial import run_trial
from vidflow.video.encode import decompress

NUM_FRAMES, SIDE = 4, 32
TRIAL = Trial(
    feed="shards", adaptation="causal", core="mean", readout="class_token", epochs=1, batch_size=4, learning_rate=1e-2
)
CAUSAL = Adaptation(offsets=[-1, -2], temporal_embedding=False, dropout=0.0)
SETTINGS = Encoder(name="test_vit", weights="random:0", img_size=SIDE, dtype="float32")


def configure(adaptation: Adaptation = CAUSAL) -> Config:
    return Config(
        encoder=SETTINGS,
        video=Video(sampling=Sampling(num_frames=NUM_FRAMES), size=SIDE),
        adaptations={"causal": adaptation},
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardClips:
    frames = np.random.default_rng(0).integers(0, 256, (8, NUM_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    splits = ["train"] * 4 + ["val"] * 4
    return finish_shards(tmp_path_factory.mktemp("shards"), frames, [index % 2 for index in range(8)], splits)


def train(shards: ShardClips, directory: Path, config: Config, trial: Trial = TRIAL) -> Path:
    results = run_trial(
        trial, shards, directory=directory, key="0123", objective=Objective("val/loss", "min"), device="cpu",
        encoding=Encoding.of(config, trial),
    )  # fmt: skip
    assert list(results)
    return directory / BEST


@pytest.fixture(scope="module")
def trained(shards: ShardClips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shards, tmp_path_factory.mktemp("trial"), configure())


@pytest.fixture(scope="module")
def merged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of weights, as the command writes it."""
    path = tmp_path_factory.mktemp("merged") / "merged.safetensors"
    with pytest.raises(SystemExit) as left:
        main(["merge-adapters", str(trained.parent), "--to", str(path)])
    assert left.value.code == 0
    return path


def extract(shards: ShardClips, weights: Path, directory: Path) -> FeatureReader:
    """Extract the features of the shards with merged weights."""
    encoder = build_clip_encoder(
        Encoder(name="test_vit", weights=str(weights), img_size=SIDE, dtype="float32"), FeatureSet(), device="cpu"
    )
    frames = torch.from_numpy(np.stack([[decompress(image) for image in shards.images(i)] for i in range(8)]))
    clips = [
        ClipTokens(
            key=shards.keys[index], label=shards.labels[index], split=shards.splits[index],
            pts_seconds=shards[index].pts_seconds, tokens=arrays.tokens, prefix=arrays.prefix, counts=arrays.counts,
        )
        for index, arrays in enumerate(encoder.encode(frames).clips())
    ]  # fmt: skip
    metadata = {
        "class_names": ["a", "b"], "embed_dim": encoder.embed_dim, "num_prefix_tokens": encoder.num_prefix_tokens,
        "grid": list(encoder.grid), "depths": list(encoder.depths), "encoder": encoder.describe(),
        "clip": clip_settings(configure()), "num_frames": NUM_FRAMES,
    }  # fmt: skip
    return finish_features(directory, {"a.arrow": clips}, metadata)


def test_extracted_features_are_the_tokens_that_the_trial_computed(
    shards: ShardClips, trained: Path, merged: Path, tmp_path: Path
) -> None:
    module, _ = load_encoded(trained)
    assert module.encoder is not None
    reader = extract(shards, merged, tmp_path)
    frames = torch.from_numpy(np.stack([decompress(image) for image in shards.images(5)]))[None]
    with torch.no_grad():
        tokens, prefix = module.encoder(frames)
    wanted = torch.cat([each.flatten() for each in (tokens, prefix)])
    found = torch.from_numpy(np.concatenate([reader[5].tokens.ravel(), reader[5].prefix.ravel()])).float()
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3  # features are in half precision


def test_extracted_features_do_not_depend_on_the_batch_or_the_clips_beside(
    shards: ShardClips, merged: Path, tmp_path: Path
) -> None:
    encoder = Encoder(name="test_vit", weights=str(merged), img_size=SIDE, dtype="float32")
    made = []
    for frames_per_batch in (1, 6 * NUM_FRAMES):
        extract = Extractor(
            build_clip_encoder(encoder, FeatureSet(), device="cpu"),
            shards=shards.directory, directory=tmp_path / str(frames_per_batch), metadata={},
            frames_per_batch=frames_per_batch,
        )  # fmt: skip
        entries = [extract(unit) for unit in extract_units(read_manifest(shards.directory))]
        files = [FeatureFile(tmp_path / str(frames_per_batch) / each.file, each.sha256) for each in entries]
        made.append([file[row] for file in files for row in range(len(file))])
    assert len(made[0]) == len(made[1]) == 8
    for alone, together in zip(*made, strict=True):
        assert alone.key == together.key
        for ours, theirs in ((alone.tokens, together.tokens), (alone.prefix, together.prefix)):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)  # fp16


def test_a_trial_on_them_streams_frame_by_frame(shards: ShardClips, merged: Path, tmp_path: Path) -> None:
    reader = extract(shards, merged, tmp_path / "features")
    trial = Trial(core="gru", num_layers=1, readout_dim=16, readout_heads=2, epochs=1, batch_size=4)
    results = run_trial(
        trial, reader, directory=tmp_path / "trial", key="1", objective=Objective("val/loss", "min"), device="cpu"
    )
    assert list(results)
    predictor = load_file(tmp_path / "trial" / BEST)
    clip = reader[5]
    tokens = torch.from_numpy(clip.tokens.reshape(1, NUM_FRAMES, 1, -1, 64))
    task = predictor.model._task
    wanted = task(tokens, torch.from_numpy(clip.prefix)[None], {})["logits"][0]
    for t, image in enumerate(shards.images(5)):
        found = predictor.model.step(decompress(image))["logits"]
        np.testing.assert_allclose(found, wanted[t].detach(), atol=2e-3)


def test_a_trial_whose_encoder_reads_later_frames_cannot_predict_frame_by_frame(
    shards: ShardClips, tmp_path: Path
) -> None:
    later = Adaptation(offsets=[-1, 1], temporal_embedding=False)
    weights = tmp_path / "later.safetensors"
    merge_trial(train(shards, tmp_path / "later", configure(later)), weights)
    reader = extract(shards, weights, tmp_path / "features")
    trial = Trial(core="mean", readout="class_token", epochs=1, batch_size=4)
    results = run_trial(
        trial, reader, directory=tmp_path / "trial", key="1", objective=Objective("val/loss", "min"), device="cpu"
    )
    assert list(results)
    with pytest.raises(VidflowError, match=r"read later frames \(offsets \+1\)"):
        load_file(tmp_path / "trial" / BEST)


def test_merging_onto_other_weights_or_twice_or_over_a_file_is_refused(
    trained: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "again.safetensors"
    with pytest.raises(VidflowError, match=r"its weights have digest \w+, but the trial adapted"):
        merge_trial(trained, other, weights="random:1")
    with pytest.raises(VidflowError, match="holds merged adapters already"):
        merge_trial(trained, other, weights=str(merged))
    with pytest.raises(SystemExit) as left:
        main(["merge-adapters", str(trained), "--to", str(merged)])
    assert left.value.code == 1
    assert f"{merged}: exists; name a file to make" in capsys.readouterr().err
    assert not other.exists()


def test_a_trial_with_other_adapters_than_it_says_is_refused(trained: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(trained)
    metadata["identity"]["encoder"]["adaptation"]["rank_ratio"] = 0.5
    path = tmp_path / BEST
    _write_tensors(path, tensors, metadata)
    with pytest.raises(VidflowError, match="does not hold what its adaptation names"):
        merge_trial(path, tmp_path / "merged.safetensors")
