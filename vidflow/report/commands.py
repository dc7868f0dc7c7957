"""The command that runs a trained trial, ready to paste into a shell."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from vidflow.config.schema import Config
from vidflow.config.tasks import TaskName, facts_of
from vidflow.config.tracking_uri import store_uri, without_credentials
from vidflow.records import TrialResult

_QUERIES = {"boxes": ["--box", "x0,y0,x1,y1"], "points": ["--point", "x,y"]}


def predict_command(config: Config, trial: TrialResult, run_id: str | None, videos: Sequence[str]) -> str:
    """Return the command that runs a trial on a video, by its MLflow run or, if that is not known, by its folder.

    Args:
        config: The experiment.
        trial: The trial.
        run_id: Its MLflow run.
        videos: Videos to take the first of that exists as a file, so that the command runs as it stands.
    """
    video = next((path for path in videos[:1] if Path(path).is_file()), "video.mp4")
    words = ["vidflow", "predict", str(trial.directory), video]
    if run_id is not None:
        words = ["vidflow", "predict", run_id, video, "--tracking-uri", without_credentials(store_uri(config))]
    query = _QUERIES.get(facts_of(cast(TaskName, trial.settings["task"])).predicts, [])
    return shlex.join([*words, *query, "--out", "predicted.mp4"])
