"""Annotations of every bad kind through `vidflow shard`: one reject each, and the good ones beside them are samples."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import webdataset as wds

from vidflow.video.ffmpeg import write_h264

CONFIG = """\
root: {folder}/root
video: {{manifest: {folder}/manifest.jsonl, sampling: {{num_frames: 4}}, size: 32}}
shards: {{max_reject_fraction: 1.0}}
encoder: {{img_size: 32, weights: 'random:0', name: test_vit}}
"""
PTS = np.arange(10) / 10
DEPTH = np.ones((10, 48, 64), np.float16)
BOX = np.tile(np.float32([4, 4, 20, 20]), (1, 10, 1))


def write_truths(folder: Path) -> dict[str, str]:
    """Write annotations and return what is said of each; nothing of the good ones."""
    seen = {"pts_seconds": PTS, "boxes": BOX, "boxes_visible": np.ones((1, 10), bool)}
    truths = {
        "good": ({"depth": DEPTH, **seen}, ""),
        "far": ({"pts_seconds": PTS + 100, "depth": DEPTH}, "s from the nearest annotated one"),
        "nan": ({"pts_seconds": PTS, "depth": DEPTH * np.float16(np.nan)}, "wanted metres"),
        "infinite": ({"pts_seconds": PTS, "depth": DEPTH * np.float16(np.inf)}, "wanted metres"),
        "narrow": ({"pts_seconds": PTS, "depth": DEPTH[:, :, :0]}, "wanted (10, height, width)"),
        "outside": ({**seen, "boxes": BOX + 100}, "empty or outside the frame"),
    }
    for name, (arrays, _) in truths.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    damaged = bytearray((folder / "good.npz").read_bytes())
    damaged[len(damaged) // 3] ^= 4
    (folder / "damaged.npz").write_bytes(damaged)
    with (folder / "single.npz").open("wb") as file:
        np.save(file, DEPTH)
    return {name: said for name, (_, said) in truths.items()} | {"damaged": ".npz", "single": "not a readable .npz"}


def test_bad_annotations_are_one_reject_each(tmp_path, in_one_ray):
    said, rows = write_truths(tmp_path), []
    for number, name in enumerate(said):
        # Videos of different content, as the same twice would be a reject.
        frames = [np.full((48, 64, 3), 20 * number + t, np.uint8) for t in range(10)]
        write_h264(tmp_path / f"{name}.mp4", frames, fps=10)
        rows.append({"path": f"{name}.mp4", "label": "thing", "split": "train", "annotations": f"{name}.npz"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    done = in_one_ray("shard", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    directory = next((tmp_path / "root" / "shards").iterdir())
    rejects = {Path(row["path"]).stem: row for row in pq.read_table(directory / "rejects.parquet").to_pylist()}
    assert rejects.keys() == said.keys() - {"good"}
    for name, row in rejects.items():
        assert row["reason"] == "Annotations"
        assert said[name] in row["message"]
        assert f"{name}.npz" in row["message"]
    tars = sorted(directory.glob("*.tar"))
    samples = [sample for tar in tars for sample in wds.WebDataset(str(tar), shardshuffle=False)]
    assert [json.loads(sample["json"])["source"] for sample in samples] == ["good.mp4"]
