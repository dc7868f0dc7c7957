import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from feature_sets import finish_features
from torch.utils.data import DataLoader

import vidflow
from vidflow.errors import VidflowError
from vidflow.records import ClipTokens


def clip(number: int, counts: list[list[int]], *, num_points: int = 1) -> ClipTokens:
    """A clip of two frames and one depth whose tokens hold its number."""
    stored = io.BytesIO()
    np.savez(stored, points=np.full((num_points, 2, 2), number, np.float32))
    num_tokens = int(np.sum(counts))
    return ClipTokens(
        key=f"{number:016x}",
        label=number % 3,
        split="val" if number % 4 == 3 else "train",
        pts_seconds=np.array([0.0, 0.5]),
        tokens=(np.arange(num_tokens * 4).reshape(num_tokens, 4) + 100 * number).astype(np.float16),
        prefix=np.full((2, 1, 4), number, np.float16),
        counts=np.array(counts, np.int32),
        annotations=stored.getvalue(),
    )


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    folder = tmp_path_factory.mktemp("even") / "features"
    files = {f"{name}.arrow": [clip(number, [[3], [3]], num_points=number % 2 + 1) for number in numbers]
             for name, numbers in (("a", range(4)), ("b", range(4, 8)))}  # fmt: skip
    finish_features(folder, files, {"embed_dim": 4, "class_names": ["x", "y", "z"]})
    return folder


def test_a_split_is_served_as_it_is_stored(even):
    dataset = vidflow.FeatureDataset(even, "val", arrays=["points"])
    assert [dataset[place]["index"] for place in range(len(dataset))] == [3, 7]
    assert dataset.class_names == ["x", "y", "z"]
    sample, stored = dataset[0], clip(3, [[3], [3]], num_points=2)
    assert (sample["key"], sample["label"]) == (stored.key, 0)
    assert sample["tokens"].numpy().tolist() == stored.tokens.reshape(2, 1, 3, 4).tolist()
    assert sample["points"].shape == (2, 2, 2)
    assert sample["counts"].tolist() == [[3], [3]]


def test_a_batch_pads_what_differs_between_clips(even, tmp_path):
    batch = vidflow.collate_clips([*vidflow.FeatureDataset(even, arrays=["points"])])
    assert batch["points"].shape == (8, 2, 2, 2)
    assert batch["points"][:, 1, 0, 0].tolist() == [0, 1, 0, 3, 0, 5, 0, 7]
    assert batch["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    ragged = [clip(0, [[1], [3]]), clip(1, [[2], [2]])]
    finish_features(tmp_path / "f", {"a.arrow": ragged}, {"embed_dim": 4, "class_names": []})
    batch = vidflow.collate_clips([*vidflow.FeatureDataset(tmp_path / "f", unmerged=False)])
    assert batch["tokens"].shape == (2, 2, 1, 3, 4)
    assert batch["counts"].tolist() == [[[1], [3]], [[2], [2]]]
    is_token = torch.arange(3) < batch["counts"][..., None]
    assert batch["tokens"][is_token].tolist() == np.concatenate([each.tokens for each in ragged]).tolist()
    assert not batch["tokens"][~is_token].any()
    with pytest.raises(VidflowError, match="1 to 3 tokens per frame"):
        vidflow.FeatureDataset(tmp_path / "f")[0]


@pytest.mark.slow  # two processes that import torch
def test_workers_that_are_spawned_read_the_same_clips_in_the_order_of_the_epoch(even):
    dataset = vidflow.FeatureDataset(even, "train")
    assert len(dataset) == len(dataset.reader) - 2  # opens the maps, which cannot be pickled
    sampler = vidflow.EpochSampler(dataset, seed=3)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=sampler,
        collate_fn=vidflow.collate_clips,
        num_workers=2,
        multiprocessing_context="spawn",
    )
    batches = list(loader)
    order = list(sampler)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == dataset.positions[order].tolist()
    assert torch.cat([batch["tokens"] for batch in batches]).equal(
        torch.stack([dataset[place]["tokens"] for place in order])
    )
    sampler.set_epoch(2)
    assert sorted(sampler) == sorted(order)
    assert list(sampler) != order


def test_a_dataset_is_pickled_without_its_maps(even):
    dataset = vidflow.FeatureDataset(even, "train")
    first = dataset[0]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    assert pickle.loads(pickled)[0]["tokens"].equal(first["tokens"])


def test_a_split_that_is_not_there_and_a_folder_that_is_none_are_said(even, tmp_path):
    with pytest.raises(VidflowError, match="no clip of split 'test'; splits found: train, val"):
        vidflow.FeatureDataset(even, "test")
    with pytest.raises(VidflowError, match="not the folder of a feature set"):
        vidflow.FeatureDataset(tmp_path)


def test_importing_vidflow_is_light_and_its_names_are_there():
    code = (
        "import sys, vidflow; assert not {'torch', 'numpy', 'mlflow'} & set(sys.modules); assert 'load' in dir(vidflow)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(vidflow, name).__name__ == name for name in vidflow.__all__)
