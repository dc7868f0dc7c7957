"""Run a trained trial on a video of any length: `vidflow predict RUN_ID_OR_DIR VIDEO`.

Needs neither Ray nor a config, because a trial stores with its weights what it was trained on.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import tempfile
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
from vidflow.errors import VideoError, VidflowError
from vidflow.stages.predict import FramePrediction, VideoPredictor
from vidflow.store.layout import publish
from vidflow.tracking import fetch_file
from vidflow.training.snapshot import BEST
from vidflow.training.trial import load_trial
from vidflow.video.drawing import draw_prediction
from vidflow.video.ffmpeg import write_h264

log = logging.getLogger("vidflow")
CHECKPOINT = f"checkpoint/{BEST}"
# Lowest frame rate of a written video; slower predictions are played faster than they happened.
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
    if arguments.json is not None:
        check_local("--json", Path(arguments.json))
    check_folders({"--out": arguments.out, "--save-state": arguments.save_state}, depth=arguments.depth)
    predictor = find_predictor(arguments.trial, weights=arguments.weights, tracking_uri=arguments.tracking_uri)
    check_files(arguments, weights=predictor.weights)
    if predictor.is_small:
        torch.set_num_threads(1)
    if arguments.load_state is not None:
        predictor.model.load_state_dict(read_state(arguments.load_state))
    fps = arguments.fps or predictor.fps
    frames = predictor.predict(
        arguments.source,
        fps=fps,
        start_seconds=arguments.start,
        max_frames=arguments.max_frames,
        queries=[*arguments.box, *arguments.point],
    )
    started, done = time.monotonic(), _Ending()
    # Predict the first frame before anything is written, because most errors show up by then.
    frames = done.watch(itertools.chain([next(frames)], frames), total=arguments.max_frames)
    outputs = (arguments.json, arguments.out, arguments.depth, arguments.save_state)
    written = ", ".join(str(path) for path in outputs if path) or "stdout"
    try:
        with contextlib.ExitStack() as files:
            sink = _open_lines(arguments, files)
            _write(frames, sink, depth=arguments.depth, out=arguments.out, fps=fps)
        if arguments.save_state is not None:
            write_state(arguments.save_state, predictor.model.state_dict())
    except OSError as error:
        raise VidflowError(f"{written}: cannot be written ({error.strerror or error})") from error
    rate = done.num_frames / (time.monotonic() - started)
    log.info("predict: %d frames, %.1f frames/s -> %s", done.num_frames, rate, written)
    if done.error is not None:
        raise done.error


def find_predictor(trial: str, *, weights: str | None = None, tracking_uri: str | None = None) -> VideoPredictor:
    """Load a trial from its folder, from `best.safetensors`, or from its MLflow run.

    Raises:
        VidflowError: There is no such trial, or its encoder cannot be rebuilt.
    """
    path = Path(trial)
    if path.exists():
        return load_predictor(path / BEST if path.is_dir() else path, weights=weights)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if os.sep in trial or not uri:
        raise VidflowError(
            f"{trial}: no such folder; wanted a trial's folder, or the id of an MLflow run together with "
            "--tracking-uri URI or MLFLOW_TRACKING_URI"
        )
    with tempfile.TemporaryDirectory() as folder:
        return load_predictor(fetch_file(uri, trial, CHECKPOINT, Path(folder)), weights=weights)


def load_predictor(path: Path, *, weights: str | None = None) -> VideoPredictor:
    """Rebuild a trial and its encoder from `best.safetensors`, on the GPU if there is one.

    Raises:
        VidflowError: The file is damaged, or the encoder cannot be rebuilt.
    """
    if path.exists() and not path.is_file():
        raise VidflowError(f"{path}: got a folder, pipe or device, wanted a trial's folder or its {BEST}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task, identity = load_trial(path, device=device)
    return VideoPredictor(task, identity.features, weights=weights, device=device)


def answer_videos(path: Path, *, weights: str | None = None) -> Callable[[Any], pd.DataFrame]:
    """Return the prediction function of the model in MLflow: from paths of videos to a table with one row per frame.

    The videos are one path, several paths, or a table with the column `path`. To follow boxes or points, the table also
    has the column `queries`: a list of them for each video, in pixels of its first frame. The result has the columns
    `path`, `index`, `pts_seconds` and the task's predictions, as `vidflow predict --json` writes them.

    Args:
        path: The trial's `best.safetensors`.
        weights: File of the encoder's weights, if it was moved; None is the recorded place.
    """
    predictor = load_predictor(path, weights=weights)

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

    def watch(self, frames: Iterator[FramePrediction], *, total: int | None) -> Iterator[FramePrediction]:
        """Yield frames and show progress, until an interrupt or a broken stream; a second interrupt stops at once."""
        before = signal.signal(signal.SIGINT, lambda *_: self._interrupt(before))
        try:
            bar = Bar("predict", total, unit="frames")
            with shown(bar):
                for frame in frames:
                    self.num_frames += 1
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


def _open_lines(arguments: argparse.Namespace, files: contextlib.ExitStack) -> IO[str] | None:
    """Open the output of JSON lines; each line is written as soon as its frame is done, so a reader can follow live."""
    if arguments.json == "-" or (arguments.json is None and arguments.out is None):
        return sys.stdout
    if arguments.json is None:
        return None
    try:
        return files.enter_context(Path(arguments.json).open("w", buffering=1))
    except OSError as error:
        raise VidflowError(f"--json {arguments.json}: cannot be written ({error.strerror})") from error


def _write(
    frames: Iterator[FramePrediction], lines: IO[str] | None, *, depth: Path | None, out: Path | None, fps: float
) -> None:
    """Read every frame and write the outputs."""
    frames = _written(frames, lines, depth)
    if out is None:
        deque(frames, maxlen=0)
        return
    with publish(out) as aside:
        write_h264(aside, _drawn(frames), fps=max(Fraction(fps).limit_denominator(1001), _SLOWEST))


def _written(frames: Iterator[FramePrediction], lines: IO[str] | None, depth: Path | None) -> Iterator[FramePrediction]:
    for frame in frames:
        if lines is not None:
            print(json.dumps(frame.row, allow_nan=False), file=lines, flush=True)
        if depth is not None and frame.depth is not None:
            millimetres = (frame.depth * 1000).round().clip(0, 65535).astype(np.uint16)
            Image.fromarray(millimetres).save(depth / f"{frame.row['index']:06d}.png")
        yield frame


def _drawn(frames: Iterator[FramePrediction]) -> Iterator[np.ndarray]:
    recent: deque[dict[str, Any]] = deque(maxlen=_TRAIL_FRAMES)
    size: tuple[int, int] | None = None
    for frame in frames:
        recent.append(frame.row)
        picture = Image.fromarray(draw_prediction(frame.pixels, list(recent), depth=frame.depth))
        size = size or picture.size  # a stream may change its frame size, a video file may not
        yield np.asarray(picture if picture.size == size else picture.resize(size))
