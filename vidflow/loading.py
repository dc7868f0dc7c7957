"""Load a trained trial, ready for videos: by its folder, its run in MLflow, or as the best of a config's sweep."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from vidflow.config.load import read_stored_trials
from vidflow.config.search import objective_of
from vidflow.errors import VidflowError
from vidflow.models.encoder import build_encoder
from vidflow.objects import is_mirror, to_path
from vidflow.stages.predict import VideoPredictor
from vidflow.stages.sources import is_config, open_experiment
from vidflow.stages.trained import SWEEPS, FinishedSweep, predict_command, read_sweep, read_sweeps
from vidflow.store.layout import exists, has_files
from vidflow.training.merge_adapters import merge_trial
from vidflow.training.snapshot import BEST
from vidflow.training.trained_task import is_adapted, load_adapted_task, load_trial

log = logging.getLogger("vidflow")


def load(
    trial: str | Path, *settings: str, weights: str | None = None, tracking_uri: str | None = None
) -> VideoPredictor:
    """Load a trained trial and its encoder, on the GPU if there is one.

    `.model` of the result predicts frame by frame; `.predict(video)` reads a video.

    Args:
        trial: A trial's folder or its `best.safetensors`, or the id of its run in MLflow. Or what has trials, for the
            best of them: a config, the folder or the run of a sweep, the root of an experiment.
        settings: More files and `key=value`, if `trial` is a config.
        weights: File of the encoder's weights, if it was moved; None is the recorded place.
        tracking_uri: MLflow store of the run; None is `MLFLOW_TRACKING_URI`.

    Raises:
        VidflowError: There is no such trial, it is damaged, or its encoder cannot be rebuilt.
    """
    with trial_file(trial, *settings, tracking_uri=tracking_uri) as path:
        return load_file(path, weights=weights)


@contextmanager
def trial_file(trial: str | Path, *settings: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """Yield the `best.safetensors` of a trial; one of a run in MLflow exists within the context only.

    The arguments are those of `load`.

    Raises:
        VidflowError: There is no such trial.
    """
    path = to_path(trial)
    if is_config(path):
        yield _best_of_config([str(trial), *settings]) / BEST
        return
    if settings:
        raise VidflowError(f"got {' '.join(settings)} beside {trial}; settings change a config (.yaml), nothing else")
    if is_mirror(path) or path.exists():
        yield _find_file(path)
        return
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if os.sep in str(trial) or not uri:
        raise VidflowError(
            f"{trial}: no such folder; wanted a config, a trial's folder, or the id of an MLflow run together with "
            "--tracking-uri URI or MLFLOW_TRACKING_URI; `vidflow ls` lists them"
        )
    with tempfile.TemporaryDirectory() as folder:
        yield _fetch_trial(uri, str(trial), Path(folder))


def load_file(path: Path, *, weights: str | None = None) -> VideoPredictor:
    """Rebuild a trial and its encoder from `best.safetensors`, on the GPU if there is one.

    Raises:
        VidflowError: The file is damaged, or the encoder cannot be rebuilt.
    """
    if path.exists() and not path.is_file():
        raise VidflowError(f"{path}: got a folder, pipe or device, wanted a trial's folder or its {BEST}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if is_adapted(path):
        predictor = _load_adapted(path, weights, device)
    else:
        task, identity = load_trial(path, device=device)
        predictor = VideoPredictor(task, identity.features, weights=weights, device=device)
    predictor.file = path
    return predictor


def _load_adapted(path: Path, weights: str | None, device: str) -> VideoPredictor:
    """Put the task behind its adapted encoder, with the adapters merged, as a frozen encoder can be streamed."""
    task, identity = load_adapted_task(path, device=device)
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged.safetensors"
        merge_trial(path, merged, weights=weights)
        encoder = {**identity.features["encoder"], "weights": str(merged)}
        built = build_encoder(
            name=encoder["name"],
            weights=str(merged),
            img_size=encoder["img_size"],
            depths=encoder["depths"],
            normalize_depths=encoder["normalize_depths"],
            mean=encoder["mean"],
            std=encoder["std"],
        )
        if not built.is_causal or built.num_frames is not None:
            sees = "later frames" if not built.is_causal else "clips of a fixed length only"
            raise VidflowError(
                f"{path}: its encoder sees {sees}, so it cannot run frame by frame; merge it with "
                "`vidflow merge-adapters`, extract, and use a trial on these features for clips"
            )
        features = {**identity.features, "encoder": built.describe()}
        predictor = VideoPredictor(task, features, device=device)
    predictor.weights = weights or identity.features["encoder"]["weights"]
    return predictor


def _best_of_config(settings: Sequence[str]) -> Path:
    """Return the folder of the best trial of a config's sweep."""
    experiment = open_experiment(settings)
    sweep = read_sweep(experiment.sweep.directory) if experiment.shards is not None else None
    if sweep is None:
        raise VidflowError(
            f"{experiment.root}: the sweep of this configuration is not finished; run `{experiment.command('run')}`, "
            f"or name another trial, which `{experiment.command('ls')}` lists"
        )
    return _choose(sweep)


def _find_file(path: Path) -> Path:
    """Return the `best.safetensors` that a file or folder stands for."""
    if not has_files(path) or exists(path / BEST):
        return path / BEST if has_files(path) else path
    if (sweep := read_sweep(path)) is not None:
        return _choose(sweep) / BEST
    if not has_files(path / SWEEPS):
        return path / BEST  # not there, which is what the message says
    match list(read_sweeps(path)):
        case []:
            raise VidflowError(f"{path}: no finished sweep; `vidflow ls {path}` lists what is there")
        case [only]:
            return _choose(only) / BEST
        case several:
            commands = [f"  {predict_command(str(sweep.directory))}" for sweep in several]
            raise VidflowError("\n".join([f"{path}: {len(several)} finished sweeps; name one:", *commands]))


def _choose(sweep: FinishedSweep) -> Path:
    """Return the folder of a sweep's best trial, and say which it is."""
    best = sweep.best_trial()
    log.info("best trial of %s: %s -> %s", sweep.directory, sweep.describe(best), best.directory)
    return best.directory


def _fetch_trial(uri: str, run_id: str, folder: Path) -> Path:
    """Copy the file of a trial's run into an empty folder; for the run of a sweep, that of its best child.

    Raises:
        VidflowError: There is no such run, or a sweep has no trial with a result, or trials of several tasks.
    """
    from vidflow.tracking import MODEL, fetch_file, find_children  # imports MLflow, which takes seconds

    checkpoint = f"{MODEL}/artifacts/{BEST}"
    children = find_children(uri, run_id)
    if children is None:
        return fetch_file(uri, run_id, checkpoint, folder)
    trials = read_stored_trials(fetch_file(uri, run_id, "config.yaml", folder))
    if len(tasks := {child.task for child in children}) > 1:
        listed = "\n".join(f"  {child.task}, {child.name}: {child.run_id}" for child in children)
        raise VidflowError(f"run {run_id}: a sweep over {len(tasks)} tasks; name the run of a trial:\n{listed}")
    scored = []
    for child in children:
        metric, mode = objective_of(trials, child.task)
        scored += [(value if mode == "max" else -value, metric, child) for value in child.values_of(metric)]
    if not scored:
        raise VidflowError(f"run {run_id}: a sweep without a finished trial")
    score, metric, best = max(scored, key=lambda each: each[0])
    log.info("best trial of run %s: %s, %s %.3f -> run %s", run_id, best.name, metric, abs(score), best.run_id)
    return fetch_file(uri, best.run_id, checkpoint, folder)


__all__ = ["load", "load_file", "trial_file"]
