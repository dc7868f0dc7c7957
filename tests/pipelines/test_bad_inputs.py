"""Every kind of broken or odd video, through `vidflow shard`: a sample or a reject each, and nothing lost."""

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from vidflow.video.ffmpeg import write_h264

sys.path.insert(0, str(Path(__file__).parents[1] / "video"))
import clip_factory as factory

CONFIG = """\
root: {folder}/root
video: {{manifest: {manifest}, sampling: {{num_frames: 4}}, size: 32}}
shards: {{max_reject_fraction: 1.0}}
encoder: {{img_size: 32, weights: 'random:0', name: test_vit}}
resources: {{decode_timeout_seconds: 30}}
"""


def frames(count: int, height: int = 48, width: int = 64):
    return list(factory.numbered_frames(count, height=height, width=width))


def make_videos(folder: Path) -> dict[str, str]:
    """Write all videos and return what each must become: a reason, or `sample`."""
    outcome = {}

    def expect(name: str, what: str) -> Path:
        outcome[name] = what
        return folder / name

    write_h264(expect("good.mp4", "sample"), frames(12), fps=12)
    shutil.copy(folder / "good.mp4", expect("zz copy of good.mp4", "Duplicate"))
    expect("empty.mp4", "Empty").touch()
    expect("text.mp4", "NotAVideo").write_text("no video\n" * 50)
    expect("text.npz", "NotAVideo").write_text("nor arrays\n" * 50)
    write_h264(folder / "frames.mp4", frames(11), fps=12)
    (folder / "frames.mp4").rename(expect("a video.npz", "sample"))
    factory.cut(folder / "good.mp4", expect("truncated.mp4", "Truncated"), 0.8)
    factory.write_audio_only(expect("audio.mp4", "NoVideoStream"))
    factory.write_without_frames(expect("zero frames.mp4", "NoFrames"))
    write_h264(expect("one frame.mp4", "sample"), frames(1), fps=12)
    factory.mux(expect("odd.mp4", "sample"), "mpeg4", frames=frames(8, 47, 63), pixel_format="yuv420p")
    factory.mux(expect("rotated.mp4", "sample"), frames=frames(9), rotation=90)
    write_h264(expect("variable rate.mp4", "sample"), frames(6), fps=25, pts=[0, 1, 2, 10, 20, 21])
    factory.mux(expect("ten bit.mp4", "sample"), frames=frames(10), pixel_format="yuv420p10le")
    write_h264(expect("naïve ünïcode 視頻 .mp4", "sample"), frames(7), fps=12)
    expect("missing.mp4", "Missing")
    expect("folder.mp4", "NotAFile").mkdir()
    outcome["../outside.mp4"] = "PathEscapes"
    # What would never end, or wait for ever, if it were opened.
    os.mkfifo(expect("pipe.mp4", "NotAFile"))
    expect("link to a pipe.mp4", "NotAFile").symlink_to(folder / "pipe.mp4")
    expect("zeros.mp4", "NotAFile").symlink_to("/dev/zero")
    expect("terminal.mp4", "NotAFile").symlink_to("/dev/tty")
    expect("loop.mp4", "Unreadable").symlink_to(folder / "loop.mp4")
    expect("gone.mp4", "Missing").symlink_to(folder / "nothing.mp4")
    return outcome


def make_annotated(folder: Path) -> dict[str, str]:
    """Write videos whose dense ground truth is no file; return what each must become."""
    made = {"a folder.npz": Path.mkdir, "a pipe.npz": os.mkfifo, "zeros.npz": lambda path: path.symlink_to("/dev/zero")}
    for number, (name, make) in enumerate(made.items()):
        make(folder / name)
        write_h264(folder / f"with {name}.mp4", frames(8 + number), fps=12)
    return {f"with {name}.mp4": "Annotations" for name in made}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, in_one_ray):
    folder = tmp_path_factory.mktemp("bad")
    videos = folder / "videos"
    videos.mkdir()
    write_h264(folder / "outside.mp4", frames(5), fps=12)
    plain, annotated = make_videos(videos), make_annotated(videos)
    rows = [(name, "thing", "train", "") for name in plain]
    rows += [(name, "thing", "train", name[len("with ") : -len(".mp4")]) for name in annotated]
    outcome = plain | annotated
    with (videos / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split", "annotations"), *rows])
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder, manifest=videos / "manifest.csv"))
    done = in_one_ray("shard", config)
    assert done.returncode == 0, done.stderr
    directory = next((folder / "root" / "shards").iterdir())
    rejects = pq.read_table(directory / "rejects.parquet").to_pylist()
    samples = [s for tar in sorted(directory.glob("*.tar")) for s in wds.WebDataset(str(tar), shardshuffle=False)]
    return outcome, samples, rejects, done.stderr


def test_every_row_is_a_sample_or_a_reject_with_the_right_reason(sharded):
    outcome, samples, rejects, _ = sharded
    got = {json.loads(sample["json"])["source"]: "sample" for sample in samples}
    got |= {Path(row["path"]).name: row["reason"] for row in rejects}
    assert got == {Path(name).name: what for name, what in outcome.items()}
    assert len(samples) + len(rejects) == len(outcome)


def test_every_reject_says_what_is_wrong_with_which_file(sharded):
    _, _, rejects, said = sharded
    assert f"{len(rejects)} rejects" in said
    for row in rejects:
        assert Path(row["path"]).name in row["message"]
        assert len(row["message"]) > len(row["path"]) + 10


def test_every_sample_has_all_its_frames_at_the_wanted_size(sharded):
    _, samples, _, _ = sharded
    for sample in samples:
        images = [Image.open(io.BytesIO(sample[f"{index:02d}.jpg"])) for index in range(4)]
        assert {image.size for image in images} == {(32, 32)}
        assert len(json.loads(sample["json"])["pts_seconds"]) == 4


def test_a_variable_frame_rate_is_sampled_by_time(sharded):
    _, samples, _, _ = sharded
    metadata = next(m for m in (json.loads(s["json"]) for s in samples) if m["source"] == "variable rate.mp4")
    # Frames begin at 0, 1, 2, 10, 20 and 21 ticks of 1/25 s. The fourth is on display for nearly half of it, so it
    # answers two of four moments; by stride no frame would be taken twice.
    ticks = (np.array(metadata["pts_seconds"]) * 25).round(2).tolist()
    assert set(ticks) <= {0, 1, 2, 10, 20, 21}
    assert ticks.count(10) == 2
