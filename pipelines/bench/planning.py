"""What the driver does before any work: read the manifest, look at every video, find its scan and choose its clips.

Compared with the bare reading of the manifest by pyarrow, and with the bare system call for each video.
"""

import csv
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.csv
import torch

from pipelines.bench.clock import Ratio, Seconds, median, ratio, take_turns
from vidflow.config.schema import Config
from vidflow.files import file_state
from vidflow.stages.experiment import Experiment
from vidflow.stages.scan import ScannedVideo

_NUM_ROWS = 20_000
_ROUNDS = 3
_CPU = torch.device("cpu")


def measure_planning(config: Config, num_rows: int = _NUM_ROWS) -> Iterator[str]:
    """Yield the line, measured on made-up videos that are all scanned."""
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-") as name:
        folder = Path(name)
        paths = _make_videos(folder, num_rows)
        video = dataclasses.replace(
            config.video, manifest=str(folder / "manifest.csv"), format=None, video_root=None, splits=None
        )
        config = dataclasses.replace(config, root=str(folder / "root"), video=video)
        index = Experiment(config).index
        limits = dataclasses.asdict(Experiment(config).limits)
        index.add([_scan(path, number, limits) for number, path in enumerate(paths)])
        times = take_turns(
            {
                "first": lambda: Experiment(config).scanned_shards,
                "read": lambda: pyarrow.csv.read_csv(folder / "manifest.csv"),
                "look": lambda: [os.stat(path) for path in paths],
            },
            _CPU,
            rounds=_ROUNDS,
        )
        with (experiment := Experiment(config)).exclusive():
            assert experiment.shards is not None  # and what it is made of is kept
        times |= take_turns({"again": lambda: Experiment(config).scanned_shards}, _CPU, rounds=_ROUNDS)
    yield (
        f"planning: {num_rows:,} rows: {1e6 * median(times['first']) / num_rows:.1f} us a row at first, "
        f"{_against(times, 'first')}; {1e6 * median(times['again']) / num_rows:.1f} us if nothing has changed, "
        f"{_against(times, 'again')}"
    )


def _against(times: dict[str, Seconds], name: str) -> str:
    bare: Ratio = ratio(times[name], times["read"] + times["look"])
    return f"{bare} times as long as to read the manifest by pyarrow and look at each file"


def _make_videos(folder: Path, number: int) -> list[str]:
    """Make empty files and a manifest of them."""
    names = [f"videos/{row:07d}.mp4" for row in range(number)]
    (folder / "videos").mkdir()
    for name in names:
        (folder / name).touch()
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows(
            [name, f"class {row % 400}", "val" if row % 10 == 0 else "train"] for row, name in enumerate(names)
        )
    return [str(folder / name) for name in names]


def _scan(path: str, number: int, limits: dict[str, float]) -> ScannedVideo:
    """Return a scan as of a video of about ten seconds, whose length is that of no other."""
    return ScannedVideo(
        path=path,
        is_video=True,
        **file_state(path)._asdict(),
        **limits,  # type: ignore[arg-type]
        sha256=hashlib.sha256(path.encode()).hexdigest(),
        codec="h264",
        fps=25.0,
        num_frames=250,
        end_seconds=10.0 + 1e-6 * number,
    )


__all__ = ["measure_planning"]
