"""A feature set with several views of each training clip: an epoch uses one of them, validation the plain one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from shard_sets import finish_shards

from pipelines.extract import build_extractor, clip_rows, extract_units, views_of
from pipelines.placement import Placement
from vidflow.config.fingerprints import feature_settings
from vidflow.config.schema import Augmentation, Config, Encoder, FeatureSet, Reducer
from vidflow.errors import VidflowError
from vidflow.models.reduction.build import build_reducer
from vidflow.stages.address import Address
from vidflow.stages.finish import finish_stage, read_manifest
from vidflow.stages.reduce import ReduceUnit, TokenReducer
from vidflow.store.features import FeatureFile, FeatureReader
from vidflow.training.feeds import StoredFeed

NUM_VIEWS, NUM_CLIPS = 3, 7
VIEWED = FeatureSet(views=NUM_VIEWS, augmentation="usual")
CONFIG = Config(
    encoder=Encoder(name="test_vit", weights="random:0", img_size=32, dtype="float32"),
    features={"base": FeatureSet(), "viewed": VIEWED},
    augmentations={"usual": Augmentation(crop_area=(0.1, 0.3), flip=1.0, flip_labels=[("class0", "class1")])},
)
PLACEMENT = Placement(part="extract", num_cpus=1, num_gpus=0, workers=1, attempts=1, device="cpu", words="")


def _finish(directory, entries, source, rejects=()):
    metadata = FeatureFile(directory / entries[0].file, entries[0].sha256).metadata
    rows = clip_rows(Address(directory=source, settings={}), list(rejects), views_of(CONFIG, VIEWED, []))
    address = Address(directory=directory, settings={})
    finish_stage(address, stage="e", entries=entries, clips=rows, rejects=[], wall_seconds=0.0, metadata=metadata)
    return FeatureReader(directory)


def _extract(shards, directory, features):
    metadata = {"class_names": shards.metadata["class_names"]}
    extract = build_extractor(CONFIG, features, shards.directory, directory, metadata, PLACEMENT)
    return [extract(unit) for unit in extract_units(read_manifest(shards.directory))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (NUM_CLIPS, 2, 32, 32, 3), dtype=np.uint8)
    splits = ["train", "val", "train", "train", "val", "train", "train"]
    labels = [index % 2 for index in range(NUM_CLIPS)]
    return finish_shards(tmp_path_factory.mktemp("shards"), frames, labels, splits, clips_per_shard=4)


@pytest.fixture(scope="module")
def viewed(shards, tmp_path_factory):
    directory = tmp_path_factory.mktemp("viewed")
    return _finish(directory, _extract(shards, directory, VIEWED), shards.directory)


def test_the_first_view_is_the_plain_clip_and_the_others_belong_to_training_clips_only(shards, viewed, tmp_path):
    files = [FeatureFile(tmp_path / each.file, each.sha256) for each in _extract(shards, tmp_path, FeatureSet())]
    plain = {file[row].key: file[row] for file in files for row in range(len(file))}
    assert viewed.keys == shards.keys
    assert viewed.num_views == NUM_VIEWS
    for index, key in enumerate(viewed.keys):
        clip = viewed[index]
        assert (clip.key, clip.label) == (key, shards.labels[index])
        # The batches of the encoder differ, so a rounding may.
        np.testing.assert_allclose(clip.tokens, plain[key].tokens, atol=2e-3)
        if viewed.splits[index] == "train":
            others = [viewed.view(index, number) for number in range(1, NUM_VIEWS)]
            assert {other.key for other in others} == {key}
            # All are mirrored, so their classes are exchanged.
            assert {other.label for other in others} == {1 - clip.label}
            assert not any(np.allclose(other.tokens, clip.tokens, atol=0.1) for other in others)


def test_an_epoch_uses_one_view_of_each_clip_and_validation_the_plain_one(viewed):
    feed = StoredFeed(clips=viewed, device=torch.device("cpu"), num_depths=1, arrays=(), unmerged=True, seed=0)
    train = np.flatnonzero(np.asarray(viewed.splits) == "train")

    def views_in(epoch):
        (batch,) = feed.batches(train, batch_size=9, epoch=epoch)
        return [
            next(
                n
                for n in range(NUM_VIEWS)
                if np.array_equal(tokens.reshape(-1, tokens.shape[-1]), viewed.view(int(index), n).tokens)
            )
            for index, tokens in zip(batch.indices, batch.tokens.numpy(), strict=True)
        ]

    assert views_in(None) == [0] * len(train)
    drawn = [views_in(epoch) for epoch in range(1, 9)]
    assert drawn[0] == views_in(1)
    assert {number for epoch in drawn for number in epoch} == {0, 1, 2}
    assert len(set(map(tuple, drawn))) > 4


def test_a_reducer_of_stored_tokens_reduces_every_view(viewed, tmp_path):
    reducer = Reducer(name="pool", settings={"window": [1, 2, 2]})
    made = build_reducer(reducer.name, place=reducer.place, **reducer.settings)
    reduce = TokenReducer(made, dense=viewed.directory, directory=tmp_path, metadata={})
    manifest = read_manifest(viewed.directory)
    units = [
        ReduceUnit(file=row["file"], dense=row["file"], source_sha256=row["sha256"], num_clips=row["num_clips"])
        for row in manifest.files
    ]
    reduced = _finish(tmp_path, [reduce(unit) for unit in units], viewed.directory)
    assert manifest.num_clips == sum(row["num_clips"] for row in manifest.files) == len(reduced) == NUM_CLIPS
    for index in np.flatnonzero(np.asarray(viewed.splits) == "train").tolist():
        for number in range(NUM_VIEWS):
            whole, small = viewed.view(index, number), reduced.view(index, number)
            assert (small.key, small.label) == (whole.key, whole.label)
            np.testing.assert_allclose(small.tokens.mean(0), whole.tokens.astype(np.float32).mean(0), atol=5e-3)


def test_views_are_in_the_address_only_if_there_are_several():
    plain = feature_settings(CONFIG, CONFIG.features["base"], "shards", "weights")
    several = feature_settings(CONFIG, VIEWED, "shards", "weights")
    assert "views" not in plain["features"]
    other = replace(CONFIG, augmentations={"usual": Augmentation(flip=0.5)})
    assert feature_settings(other, other.features["base"], "shards", "weights") == plain
    assert feature_settings(other, VIEWED, "shards", "weights") != several != plain


def test_a_class_that_does_not_exist_cannot_be_exchanged():
    with pytest.raises(VidflowError, match=r"augmentations\.usual\.flip_labels: got 'class0', wanted classes"):
        views_of(CONFIG, VIEWED, ["a", "b"])
