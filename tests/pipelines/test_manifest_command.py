"""`vidflow manifest`, and experiments on videos from any source, through the command."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
import yaml

from vidflow.video.ffmpeg import write_h264
from vidflow.video.manifest import read_manifest

CLASSES = ("bark", "meow")
SPLITS = ("train", "val", "test")
SETTINGS = {
    "video": {"manifest": "???", "sampling": {"num_frames": 3}, "size": 32},
    "shards": {"max_reject_fraction": 0.5, "image_format": "png"},
    "encoder": {"img_size": 32, "weights": "random:0", "name": "test_vit", "dtype": "float32"},
    "features": {"base": {"depths": [0]}},
    "trials": {
        "trial": {"num_layers": 1, "num_heads": 2, "readout_dim": 32, "readout_heads": 2, "epochs": 2},
        "axes": {"core": ["mean"]},
    },
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Six videos: as a folder per split and class, in two tars with JSON, and as lists with numbers of classes."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "tars").mkdir()
    (folder / "lists").mkdir()
    (folder / "lists" / "classes.txt").write_text("\n".join(CLASSES))
    rng = np.random.default_rng(0)
    for part, split in enumerate(SPLITS):
        lines = []
        with tarfile.open(folder / "tars" / f"{part:05d}.tar", "w") as archive:
            for number, label in enumerate(CLASSES):
                video = folder / "videos" / split / label / f"{split}{number}.mp4"
                video.parent.mkdir(parents=True)
                write_h264(video, rng.integers(0, 255, (5, 32, 32, 3)).astype(np.uint8), fps=5)
                archive.add(video, f"{part:05d}{number:04d}.mp4")
                info = tarfile.TarInfo(f"{part:05d}{number:04d}.json")
                data = json.dumps({"label": label, "split": split}).encode()
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                lines.append(f"{video.relative_to(folder / 'videos')} {number}\n")
        (folder / "lists" / f"mine_{split}_videos.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"root": str(tmp_path / "root")}))
    return path


@pytest.mark.parametrize("source", ["videos", "tars", "lists/mine_train_videos.txt"])
def test_any_source_is_described_and_becomes_the_same_rows(here, sources, tmp_path, source):
    options = ["--video-root", sources / "videos"] if source.startswith("lists") else []
    described = here("manifest", sources / source, *options)
    assert described.returncode == 0, described.stderr
    assert "6 videos (" in described.stdout
    assert "Videos per class: bark 3, meow 3." in described.stdout
    made = here("manifest", sources / source, *options, "--to", tmp_path / "rows.csv")
    assert f"--video-root {sources}" in made.stdout
    items, rejects = read_manifest(tmp_path / "rows.csv", video_root=sources)
    assert not rejects
    assert sorted((item.label, item.split) for item in items) == sorted((c, s) for c in CLASSES for s in SPLITS)
    again = here("manifest", sources / source, *options, "--to", tmp_path / "rows.csv")
    assert again.returncode == 2
    assert "wanted a new file" in again.stderr


def test_the_same_videos_from_any_source_are_the_same_shards(in_one_ray, sources, config):
    made = in_one_ray("shard", config, f"video.manifest={sources / 'tars'}")
    assert made.returncode == 0, made.stderr
    assert "video.manifest: 3 tars, read in place." in made.stderr
    assert "shard: 6 clips in 1 shards, 0 rejects" in made.stderr
    for source in ("videos", "lists/mine_val_videos.txt"):
        words = [f"video.manifest={sources / source}", f"video.video_root={sources / 'videos'}"]
        again = in_one_ray("shard", config, *words, "trials.splits.test=test")
        assert "shard: already done" in again.stderr


@pytest.mark.slow
def test_an_experiment_runs_on_tars_and_measures_the_best_epoch_on_the_test_split(vidflow, sources, config):
    done = vidflow("run", config, f"video.manifest={sources / 'tars'}", "trials.splits.test=test")
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in config.parent.glob("root/trials/*/result.json")]
    measured = [["test/top1" in epoch["metrics"] for epoch in result["history"]] for result in results]
    assert measured == [[False, True]]


def test_the_first_reject_of_each_reason_is_on_the_screen_with_what_to_do(in_one_ray, sources, config, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "in" / name).write_bytes(b"no video")
    video = sources / "videos/train/bark/train0.mp4"
    paths = ["a.mp4", "b.mp4", str(video), str(video.with_name("other.mp4"))]
    with (tmp_path / "in" / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *((path, "x", "train") for path in paths)])
    manifest = f"video.manifest={tmp_path / 'in' / 'rows.csv'}"
    refused = in_one_ray("shard", config, manifest)
    assert refused.returncode == 3
    assert "shard: trials will be refused: no row of split 'val'; got 'train' (2 rows)" in refused.stderr
    assert refused.stderr.count("the first:") == 2
    assert "2 PathEscapes, the first:" in refused.stderr
    assert f"video.video_root={video.parent}" in refused.stderr
    assert "2 NotAVideo, the first:" in refused.stderr
    done = in_one_ray("shard", config, manifest, f"video.video_root={sources}", "shards.max_reject_fraction=1")
    assert done.returncode == 0
    assert "shard: left out: 2 NotAVideo, the first:" in done.stderr
    assert "1 Missing, the first:" in done.stderr


def test_conf_actions_names_what_it_needs(here):
    done = here("run", "conf/actions.yaml")
    assert done.returncode == 2
    assert "video.manifest: required" in done.stderr


def test_names_from_elsewhere_change_neither_the_screen_nor_a_config(here, tmp_path):
    hostile = "x\u2028root: /elsewhere\x1b[2J"
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number, facts in enumerate(
            [{"label": hostile, "split": s} for s in ("train", "val")] + [{"label": "y"}] * 2
        ):
            facts |= {"split": SPLITS[number % 2], "status": hostile}
            members = {"json": json.dumps(facts).encode(), **({"mp4": b"video"} if number < 3 else {}), "\x1b[2J": b""}
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    described = here("manifest", tmp_path / "0.tar")
    assert described.returncode == 0, described.stderr
    made = here("init", tmp_path / "0.tar", "--output", tmp_path / "mine.yaml")
    assert made.returncode == 0, made.stderr
    for text in (described.stdout, made.stdout, (tmp_path / "mine.yaml").read_text()):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["root"] == "runs/mine"
