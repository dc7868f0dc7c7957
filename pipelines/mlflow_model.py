"""Code that MLflow stores with a trial's model and runs when the model is loaded; vidflow must be installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidflow.tracking import serve_model


def build(path: Path, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the prediction function of a trial's file; setting `weights` is the encoder's file, if it was moved."""
    from pipelines.predict import answer_videos  # here, because MLflow also runs this file when it only stores it

    answer = answer_videos(path, weights=settings.get("weights"))
    # A list of paths arrives as a table whose only column has no name.
    return lambda videos: answer(videos.rename(columns={0: "path"}))


serve_model(build)
