"""Trained trials as their files describe them, without torch: which is best, and the command that uses it."""

import shlex

from vidflow.config.tasks import TaskName, facts_of
from vidflow.config.tracking_uri import without_credentials


def predict_command(trial: str, *, tracking_uri: str | None = None, task: TaskName = "classification") -> str:
    """Return the command line that runs a trial on a video; the user replaces `VIDEO`, and the numbers of a query.

    Args:
        trial: The MLflow run of the trial, or the trial's folder.
        tracking_uri: Store of the run; None for a folder.
        task: The trial's task; some tasks need a box or a point to follow.
    """
    words = ["vidflow", "predict", trial, "VIDEO"]
    if tracking_uri is not None:
        words += ["--tracking-uri", without_credentials(tracking_uri)]
    match facts_of(task).predicts:
        case "boxes":
            words += ["--box", "X0,Y0,X1,Y1"]
        case "points":
            words += ["--point", "X,Y"]
        case _:
            pass
    return shlex.join([*words, "--out", "predicted.mp4"])


__all__ = ["predict_command"]
