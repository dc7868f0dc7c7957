"""Measure a finished trial on another split or manifest: `evaluate.trial`."""

import os
import tempfile
from pathlib import Path

import torch

from pipelines.ray_pool import log
from vidflow.config.fingerprints import fingerprint
from vidflow.config.load import config_to_yaml
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import ConfigError
from vidflow.objects import is_mirror, show_urls, to_path
from vidflow.stages.experiment import Experiment
from vidflow.store.features import FeatureReader
from vidflow.store.layout import has_files
from vidflow.tracking import FeatureData, Tracker, fetch_file
from vidflow.training.measure import measure_trial
from vidflow.training.snapshot import BEST
from vidflow.training.trained_task import load_trial

CHECKPOINT = f"checkpoint/{BEST}"


def evaluate_trial(experiment: Experiment, trial: str) -> None:
    """Print the metrics of a trial on `evaluate.split` of this experiment's features, and log them as a run.

    Args:
        experiment: The experiment; its feature set with the name of the trial's must be extracted.
        trial: The trial's folder, or its MLflow run.

    Raises:
        VidflowError: There is no such trial, or the features are missing or do not fit it.
    """
    config, uri, split = experiment.config, store_uri(experiment.config), experiment.config.evaluate.split
    with experiment.exclusive(), tempfile.TemporaryDirectory() as folder:
        path = _checkpoint(trial, uri, Path(folder))
        _, identity = load_trial(path)
        name = str(identity.settings["features"])
        if name not in config.features:
            raise ConfigError(f"features: got {', '.join(config.features)}; the trial was trained on {name!r}")
        address = experiment.finished_features(name)
        reader = FeatureReader(address.directory)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        by_video = identity.settings.get("score_by") == "video"
        metrics, num_clips = measure_trial(path, reader, split, by_video=by_video, device=device)
    counted = f"{num_clips} clips"
    if by_video:
        videos = {video for video, of in zip(reader.videos, reader.splits, strict=True) if of == split}
        counted += f" of {len(videos)} videos"
    print(f"{identity.settings['task']} of trial {identity.key} on split {split}, {counted}:")
    print("\n".join(f"  {key:<24} {value:.6g}" for key, value in metrics.items()))
    key = fingerprint(["evaluate", identity.key, address.identity, split])
    with Tracker(experiment.root, key, uri=uri, experiment=config.tracking.experiment) as tracker:
        tracker.open_sweep(
            name=f"{config.report.title}: trial on {split}",
            params={"trial": identity.key, "split": split, "num_clips": num_clips},
            config_yaml=config_to_yaml(config),
            datasets=[
                FeatureData(
                    name=name,
                    identity=address.identity,
                    place=show_urls(str(address.directory)),
                    clips={split: num_clips},
                )
            ],
        )
        tracker.finish(tracker.sweep, "FINISHED", metrics={f"{split}/{name}": value for name, value in metrics.items()})
        run_id = tracker.ids().run_id
    if run_id:
        log.info("evaluate: MLflow run %s; all runs: %s", run_id, experiment.command("ui"))


def _checkpoint(trial: str, uri: str, folder: Path) -> Path:
    path = to_path(trial)
    if is_mirror(path) or path.exists():
        return path / BEST if has_files(path) else path
    if os.sep in trial:
        raise ConfigError(f"evaluate.trial: {trial}: no such folder; wanted a trial's folder or its MLflow run")
    return fetch_file(uri, trial, CHECKPOINT, folder)


__all__ = ["evaluate_trial"]
