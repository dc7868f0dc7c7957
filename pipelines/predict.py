"""Run a trained trial on a video of any length: `vidflow predict TRIAL VIDEO`.

Needs no Ray, and a config only to find its best trial: a trial stores with its weights what it was trained on.
"""

import argparse
import contextlib
import itertools
import json
import logging
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipelines.display import Bar, shown
from pipelines.predict_files import check_files, check_folders, check_local, read_state, write_state
from vidflow.errors import ConfigError, VideoError, VidflowError
from vidflow.loading import load, load_file
from vidflow.stages.predict import FramePrediction
from vidflow.stages.sources import is_config
from vidflow.store.layout import publish
from vidflow.video.drawing import draw_prediction
from vidflow.video.ffmpeg import write_h264

log = logging.getLogger("vidflow")
# Clock of a written video: its frames are shown when those of the source are.
_TICK = Fraction(1, 90_000)
# Lowest frame rate that the header of a written video can name.
_SLOWEST = Fraction(1, 1001)
# Length of the trail that is drawn behind a point, in frames.
_TRAIL_FRAMES = 24


def main(arguments: argparse.Namespace) -> None:
    """Predict every frame, write the outputs, and log where they are.

    An interrupt or a broken stream ends the video; earlier frames are kept.

    Raises:
        VidflowError: The trial, the source, the state or the queries cannot be used, or a prediction is not finite. Or
            an output cannot be written, or is an input.
    """
    if is_config(arguments.source):
        words = shlex.join([arguments.source, arguments.trial])
        raise ConfigError(
            f"{arguments.source}: got a config as the video; the config comes first: vidflow predict {words}"
        )
    if arguments.json is not None:
        check_local("--json", Path(arguments.json))
    check_folders({"--out": arguments.out, "--save-state": arguments.save_state}, depth=arguments.depth)
    predictor = load(
        arguments.trial, *arguments.settings, weights=arguments.weights, tracking_uri=arguments.tracking_uri
    )
    assert predictor.file is not None  # `load` reads one
    check_files(arguments, trial=predictor.file, weights=predictor.weights)
    if predictor.is_small:
        torch.set_num_threads(1)
    if arguments.load_state is not None:
        predictor.model.load_state_dict(read_state(arguments.load_state))
    frames = predictor.predict(
        arguments.source,
        fps=arguments.fps,
        start_seconds=arguments.start,
        max_frames=arguments.max_frames,
        queries=[*arguments.box, *arguments.point],
        every_frame=arguments.out is not None,
    )
    started, done = time.monotonic(), _Ending()
    # Read the first frame before anything is written, because most errors show up by then.
    quiet = sys.stdout.isatty() and _prints_rows(arguments)
    frames = done.watch(itertools.chain([next(frames)], frames), total=arguments.max_frames, quiet=quiet)
    outputs = (arguments.json, arguments.out, arguments.depth, arguments.save_state)
    written = ", ".join(str(path) for path in outputs if path) or "stdout"
    try:
        with contextlib.ExitStack() as files:
            sink = _open_lines(arguments, files)
            _write(frames, sink, depth=arguments.depth, out=arguments.out)
        if arguments.save_state is not None:
            write_state(arguments.save_state, predictor.model.state_dict())
    except OSError as error:
        raise VidflowError(f"{written}: cannot be written ({error.strerror or error})") from error
    rate = done.num_frames / (time.monotonic() - started)
    log.info("predict: %d frames, %.1f frames/s -> %s", done.num_frames, rate, written)
    if done.error is not None:
        raise done.error


def answer_videos(path: Path, *, weights: str | None = None) -> Callable[[Any], pd.DataFrame]:
    """Return the prediction function of the model in MLflow: from paths of videos to a table with one row per frame.

    The videos are one path, several paths, or a table with the column `path`. To follow boxes or points, the table also
    has the column `queries`: a list of them for each video, in pixels of its first frame. The result has the columns
    `path`, `index`, `pts_seconds` and the task's predictions, as `vidflow predict --json` writes them.

    Args:
        path: The trial's `best.safetensors`.
        weights: File of the encoder's weights, if it was moved; None is the recorded place.
    """
    predictor = load_file(path, weights=weights)

    def answer(videos: Any) -> pd.DataFrame:
        table = videos if isinstance(videos, pd.DataFrame) else pd.DataFrame({"path": np.atleast_1d(videos)})
        if "path" not in table:
            raise VidflowError(f"got the columns {', '.join(map(str, table.columns))}; wanted `path`, of a video")
        rows = []
        for _, video in table.iterrows():
            predictor.model.reset()
            frames = predictor.predict(str(video["path"]), queries=_query_list(video.get("queries")))
            rows += [{"path": str(video["path"]), **frame.row} for frame in frames]
        return pd.DataFrame(rows)

    return answer


def _query_list(cell: Any) -> list[list[float]]:
    """Return the queries in a cell of a table; a list may have become an array, and a missing value NaN."""
    return [] if cell is None or np.ndim(cell) == 0 else [[float(number) for number in query] for query in cell]


class _Ending:
    """How a video ends: by itself, by an interrupt, or by an error after some frames."""

    def __init__(self) -> None:
        self.num_frames = 0
        self.error: VideoError | None = None
        self._interrupted = False

    def watch(self, frames: Iterator[FramePrediction], *, total: int | None, quiet: bool) -> Iterator[FramePrediction]:
        """Yield frames and show progress, until an interrupt or a broken stream; a second interrupt stops at once."""
        before = signal.signal(signal.SIGINT, lambda *_: self._interrupt(before))
        try:
            bar = Bar("predict", total, unit="frames")
            # Rows on the terminal are progress enough, and would run into the bar.
            with contextlib.nullcontext() if quiet else shown(bar):
                for frame in frames:
                    self.num_frames += not frame.is_held
                    bar.update(self.num_frames)
                    yield frame
                    if self._interrupted:
                        return
        except VideoError as error:
            self.error = error
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, before: Any) -> None:
        self._interrupted = True
        signal.signal(signal.SIGINT, before)


def _prints_rows(arguments: argparse.Namespace) -> bool:
    """Whether JSON lines go to stdout."""
    return bool(arguments.json == "-" or (arguments.json is None and arguments.out is None))


def _open_lines(arguments: argparse.Namespace, files: contextlib.ExitStack) -> IO[str] | None:
    """Open the output of JSON lines; each line is written as soon as its frame is done, so a reader can follow live."""
    if _prints_rows(arguments):
        return sys.stdout
    if arguments.json is None:
        return None
    try:
        return files.enter_context(Path(arguments.json).open("w", buffering=1))
    except OSError as error:
        raise VidflowError(f"--json {arguments.json}: cannot be written ({error.strerror})") from error


def _write(frames: Iterator[FramePrediction], lines: IO[str] | None, *, depth: Path | None, out: Path | None) -> None:
    """Read every frame and write the outputs."""
    frames = _written(frames, lines, depth)
    if out is None:
        deque(frames, maxlen=0)
        return
    with publish(out) as aside:
        drawn = _drawn(frames)
        first = list(itertools.islice(drawn, 2))
        step = Fraction(first[-1][1] - first[0][1] or _TICK.denominator) * _TICK
        # `tee` keeps only the frame whose time is read next.
        pictures, times = itertools.tee(itertools.chain(first, drawn))
        pixels, ticks = (each for each, _ in pictures), (each for _, each in times)
        write_h264(aside, pixels, fps=max(1 / step, _SLOWEST), pts=ticks, time_base=_TICK)


def _written(frames: Iterator[FramePrediction], lines: IO[str] | None, depth: Path | None) -> Iterator[FramePrediction]:
    for frame in frames:
        if lines is not None and not frame.is_held:
            print(json.dumps(frame.row, allow_nan=False), file=lines, flush=True)
        if depth is not None and frame.depth is not None and not frame.is_held:
            millimetres = (frame.depth * 1000).round().clip(0, 65535).astype(np.uint16)
            Image.fromarray(millimetres).save(depth / f"{frame.row['index']:06d}.png")
        yield frame


def _drawn(frames: Iterator[FramePrediction]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield every frame of the source with its prediction, and when it is shown, in ticks from the first one."""
    recent: deque[dict[str, Any]] = deque(maxlen=_TRAIL_FRAMES)
    size: tuple[int, int] | None = None
    start, last = None, -1
    # A frame that was looked at several times is drawn once, with its last prediction.
    for seconds, same in itertools.groupby(frames, key=lambda frame: frame.row["pts_seconds"]):
        for frame in same:
            if not frame.is_held:
                recent.append(frame.row)
        rows = [*recent, frame.row] if frame.is_held else list(recent)
        picture = Image.fromarray(draw_prediction(frame.pixels, rows, depth=frame.depth))
        size = size or picture.size  # a stream may change its frame size, a video file may not
        start = seconds if start is None else start
        last = max(last + 1, round((seconds - start) / _TICK))
        yield np.asarray(picture if picture.size == size else picture.resize(size)), last
