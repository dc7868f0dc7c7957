"""Clips that are made again: what is the same, what rounding explains, and what is silently wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidflow.records import ClipTokens
from vidflow.stages.remake import TOLERANCE, _compare_tokens, draw_clips, remake
from vidflow.store.features import FeatureReader, write_features
from vidflow.store.layout import list_file, publish_json, read_sealed


def tokens(seed: int, *, noise: float = 0.0) -> ClipTokens:
    values = np.random.default_rng(seed).normal(size=(32, 16))
    values = values * (1 + noise * np.random.default_rng(9).normal(size=values.shape))
    return ClipTokens(
        key="k", label=0, split="val", pts_seconds=np.arange(4.0), tokens=values[:28].astype(np.float16),
        prefix=values[28:, None].astype(np.float16), counts=np.full((4, 1), 7),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "dtype", "verdict"),
    [
        (tokens(0), "float32", "equal"),
        (tokens(0, noise=1e-3), "float32", "close"),
        (tokens(0, noise=1e-2), "float32", "differs"),
        (tokens(0, noise=1e-2), "bfloat16", "close"),
        (tokens(0, noise=1e-1), "bfloat16", "differs"),
        (tokens(1), "bfloat16", "differs"),
        (replace(tokens(0), counts=np.full((4, 1), 6)), "float32", "unknown"),
    ],
)  # fmt: skip
def test_tokens_are_equal_or_close_by_rounding_or_differ(made, dtype, verdict):
    assert _compare_tokens(made, tokens(0), dtype)[0] == verdict
    assert max(TOLERANCE.values()) < 0.1, "another clip or other weights give more than 1"


def test_the_same_seed_draws_the_same_clips_of_sound_shards(finished_experiment):
    root = finished_experiment.root
    (shards,) = root.glob("shards/*/")
    first, again, other = (draw_clips(root, 5, seed=seed, sound=[shards]) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first[shards]) == 5
    assert len(draw_clips(root, 1000, seed=0, sound=[shards])[shards]) == 60
    assert draw_clips(root, 5, seed=0, sound=[]) == {}


def restore(folder: Path, name: str, shift: float) -> None:
    """Write a feature file again with other tokens, so that every digest is right and every value wrong."""
    reader = FeatureReader(folder)
    clips = [reader[row] for row, place in enumerate(reader._places) if place[0] == name]
    wrong = [replace(clip, tokens=(clip.tokens + np.float16(shift)).astype(np.float16)) for clip in clips]
    write_features(folder / name, wrong, reader.metadata)
    row = list_file(folder / name)
    publish_json(folder / f"{name}.json", {**read_sealed(folder / f"{name}.json"), **row})
    manifest = read_sealed(folder / "manifest.json")
    files = [{**each, **row} if each["file"] == name else each for each in manifest["files"]]
    entries = [{**each, "num_bytes": (folder / each["file"]).stat().st_size} for each in manifest["entries"]]
    publish_json(folder / "manifest.json", {**manifest, "files": files, "entries": entries})


@pytest.mark.slow
def test_features_that_are_silently_wrong_are_found_though_every_digest_is_right(here, copied_config):
    root = copied_config.with_name("root")
    good = here("verify", root, "--deep", 60)
    assert good.returncode == 0, good.stderr
    assert "60 clips made again, drawn with --seed 0" in good.stdout
    (features,) = root.glob("features/*/")
    restore(features, "shard-000001.arrow", 0.25)
    assert here("verify", root).returncode == 0
    bad = here("verify", root, "--deep", 60, "--seed", 3)
    assert bad.returncode == 1
    assert "features/" in bad.stdout
    assert "relative error" in bad.stdout


@pytest.mark.slow
def test_a_video_that_is_gone_or_changed_is_named_and_not_called_damage(copied_config):
    root = copied_config.with_name("root")
    (shards,) = root.glob("shards/*/")
    videos = sorted(root.glob("videos/*/*.mp4"))
    videos[0].unlink()
    videos[1].write_bytes(videos[2].read_bytes())
    results = list(remake(root, draw_clips(root, 60, seed=0, sound=[shards]), sound=[shards]))
    details = [each.detail for each in results if each.verdict == "unknown"]
    assert sorted(details) == [f"its video has changed: {videos[1]}", f"its video is gone: {videos[0]}"]
    assert {each.verdict for each in results} == {"equal", "unknown"}
