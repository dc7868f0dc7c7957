import csv
import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

import vidflow
from pipelines import export


@pytest.fixture(scope="module")
def features(finished_experiment):
    """The folder of a finished feature set."""
    return next(finished_experiment.root.glob("features/*/"))


def test_hugging_face_datasets_reads_what_was_exported(here, finished_experiment, features, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hf"
    done = here("export", finished_experiment.config, "--to", folder)
    assert done.returncode == 0, done.stderr
    assert f'datasets.load_dataset("{folder}")' in done.stderr
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for split, stored in loaded.items():
        ours = vidflow.FeatureDataset(features, split)
        assert stored.features["label"].names == ours.class_names
        assert len(stored) == len(ours)
        for row, clip in zip(stored.with_format("numpy"), ours, strict=True):
            assert (row["key"], row["label"]) == (clip["key"], clip["label"])
            for name in ("tokens", "prefix", "pts_seconds"):
                np.testing.assert_array_equal(row[name], clip[name].numpy())
    assert set(loaded) == {"train", "val"}
    assert pq.read_table(folder / "data" / "val-00000-of-00001.parquet")["tokens"].type is not None


def test_clips_without_prefix_tokens_are_exported():
    """Some encoders have none, such as VideoMAE."""
    bare = export._to_lists([np.zeros((3, 0, 4), np.float16)] * 2)
    assert [np.shape(each) for each in bare.to_pylist()] == [(3, 0)] * 2
    full = np.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4)
    np.testing.assert_array_equal(export._to_lists(list(full)).to_pylist(), full)


def test_npz_files_hold_the_clips_that_the_table_lists(here, features, tmp_path):
    folder = tmp_path / "npz"
    assert here("export", features, "--to", folder, "--format", "npz").returncode == 0
    with (folder / "clips.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(list(folder.glob("*.npz"))) == 60
    dataset = vidflow.FeatureDataset(features)
    for clip in dataset:
        row = rows[clip["key"]]
        assert row["class_name"] == dataset.class_names[clip["label"]]
        with np.load(folder / row["file"], allow_pickle=False) as stored:
            np.testing.assert_array_equal(stored["tokens"], clip["tokens"].numpy())
            assert stored["label"] == clip["label"]
    assert json.loads((folder / "features.json").read_text())["encoder"]["name"] == "test_vit"


def test_mistakes_are_named_and_leave_nothing_behind(here, finished_experiment, features, tmp_path):
    for source, more, complaint in [
        ((features,), ("--to", features), "exists; name a folder to make"),
        ((tmp_path,), ("--to", tmp_path / "x"), "not the folder of a feature set"),
        ((finished_experiment.config,), ("--to", tmp_path / "x", "--features", "big"), "wanted one of base"),
        ((finished_experiment.config, f"root={tmp_path}"), ("--to", tmp_path / "x"), "features base are not finished"),
        (
            (finished_experiment.config, "trials.trial.feed=shards", "features.base.depths=[-1]"),
            ("--to", tmp_path / "x"),
            "features base are not stored, as all trials that name them read frames",
        ),
        ((features,), ("--to", "s3://bucket/x"), "got a URL"),
    ]:
        done = here("export", *source, *more)
        assert complaint in done.stderr
        assert done.returncode in (1, 2)
    assert list(tmp_path.iterdir()) == []
