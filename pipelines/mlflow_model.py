"""What MLflow keeps as the code of a trial's model: run when the model is loaded, with vidflow installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidflow.tracking import serve_model


def build(path: Path, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """Return what answers for the trial whose weights are in a file; `weights` may say where the encoder's are now."""
    from pipelines.predict import answer_videos  # here, as MLflow runs this file also when it only keeps it

    return answer_videos(path, weights=settings.get("weights"))


serve_model(build)
