"""Collect the report's content from the files that an experiment's stages have written."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import cast, get_args

import torch

from vidflow.config.encoder import encoder_title
from vidflow.config.load import config_to_yaml
from vidflow.config.schema import Config
from vidflow.config.search import objective_of
from vidflow.config.tasks import TaskName
from vidflow.config.tracking_uri import store_uri
from vidflow.models.tasks import spec_of
from vidflow.records import TrialResult
from vidflow.report.exports import CSV, TEX
from vidflow.report.gather_classes import clips_of, gather_classes
from vidflow.report.gather_costs import compare_costs
from vidflow.report.page import ReportData, TaskSection
from vidflow.report.pictures import draw_clips
from vidflow.report.results import read_pictured, read_validated
from vidflow.report.seen import picture_seen
from vidflow.report.sources import name_sources
from vidflow.report.tables import rank_trials
from vidflow.stages.address import Address
from vidflow.stages.clip_frames import ClipFrames
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import read_rejects
from vidflow.stages.trained import is_usable, predict_command, read_header


def gather(experiment: Experiment, results: list[TrialResult]) -> ReportData:
    """Return everything that the page shows; all stages up to the sweep must be finished.

    Args:
        experiment: The experiment.
        results: Results of the sweep's trials.

    Raises:
        VidflowError: If a file of a stage is missing or damaged.
    """
    config = experiment.config
    sources = [experiment.scanned_shards.address, *experiment.stored_features.values()]
    stages = [*([experiment.videos] if config.video.manifest is None else []), *sources, experiment.sweep]
    notices = []
    if config.encoder.weights.startswith("random:"):
        notices.append(
            f"The encoder {encoder_title(config.encoder)} has seeded random weights ({config.encoder.weights}), "
            "not pre-trained ones."
        )
    return ReportData(
        title=config.report.title,
        config_yaml=config_to_yaml(config),
        sections=_sections(experiment, results),
        stages=[experiment.finished(address) for address in stages],
        rejects=[reject for address in sources for reject in read_rejects(address)],
        provenance=_provenance(config, stages),
        notices=notices,
        pareto=compare_costs(experiment, results),
        sources=name_sources(experiment.scanned_shards.units),
        downloads={CSV: "a row per trial", TEX: "for a paper"},
        ui=experiment.command("ui"),
        root=config.root,
    )


def _sections(experiment: Experiment, results: list[TrialResult]) -> list[TaskSection]:
    """Return a section per task."""
    config, sweep = experiment.config, experiment.finished(experiment.sweep)
    runs: dict[str, str] = sweep.details.get("runs", {})
    sections = []
    frames = ClipFrames(experiment.scanned_shards)
    for task in get_args(TaskName):
        objective, mode = objective_of(config.trials, task)
        trials = [result for result in results if result.settings["task"] == task]
        if not trials:
            continue
        ranked = rank_trials(trials, objective, mode)
        best = ranked[0].result
        reader = clips_of(experiment, best)
        pictured = read_pictured(best)
        validated = [reader.keys[index] for index in read_validated(best)]
        sections.append(
            TaskSection(
                task=task,
                objective=objective,
                mode=mode,
                trials=trials,
                baseline=sweep.details["baselines"].get(task, {}),
                baseline_answer=spec_of(task).trivial.words,
                pictures=draw_clips(
                    task, pictured, reader, frames, objective=objective, num_clips=config.report.num_examples
                )
                if pictured
                else (),
                seen=picture_seen(best, reader, validated, frames),
                runs=runs,
                predict=_predict_command(config, best, runs.get(best.key)) if ranked[0].is_best else "",
                **gather_classes(experiment, ranked, mode, reader, frames),
            )
        )
    return sections


def _predict_command(config: Config, trial: TrialResult, run_id: str | None) -> str:
    """Return the command that runs a trial: by its run, or by its folder if a sweep of old did not record the run.

    Empty if the trial cannot run frame by frame.
    """
    if not is_usable(trial.settings, read_header(trial.directory)[0]):
        return ""
    task = cast(TaskName, trial.settings["task"])
    if run_id is None:
        return predict_command(str(trial.directory), task=task)
    return predict_command(run_id, tracking_uri=store_uri(config), task=task)


def _provenance(config: Config, stages: list[Address]) -> dict[str, str]:
    return {
        **{f"fingerprint {address.directory.parent.name}": address.fingerprint for address in stages},
        "encoder": f"{encoder_title(config.encoder)}, {config.encoder.weights}",
        **describe_machine(),
    }


def describe_machine() -> dict[str, str]:
    """Return what any result depends on: code, versions, hardware, time."""
    packages = ("vidflow", "torch", "timm", "ray", "mlflow", "webdataset", "pyarrow", "av")
    return {
        "git": _git_revision(),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "python": platform.python_version(),
        "hardware": f"{os.cpu_count()} cores, {_gpu()}, {platform.platform()}",
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _git_revision() -> str:
    """Return the commit of the code, with `+` if it has uncommitted changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown: git is not installed"
    return described.stdout.strip() or "unknown: not a checkout"
