"""Collect the report's content from the files that an experiment's stages have written."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from vidflow.config.encoder import encoder_title
from vidflow.config.load import config_to_yaml
from vidflow.config.schema import Config
from vidflow.config.search import objective_of
from vidflow.config.tasks import TaskName
from vidflow.models.tasks import spec_of
from vidflow.records import TrialResult
from vidflow.report.gather_costs import compare_costs
from vidflow.report.page import Example, ReportData, TaskSection
from vidflow.report.pictures import draw_clips
from vidflow.report.results import Classified, read_classified, read_pictured
from vidflow.report.tables import rank_trials
from vidflow.stages.address import Address
from vidflow.stages.clip_frames import ClipFrames
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import read_rejects
from vidflow.store.features import FeatureReader


def gather(experiment: Experiment, results: list[TrialResult]) -> ReportData:
    """Return everything that the page shows; all stages up to the sweep must be finished.

    Args:
        experiment: The experiment.
        results: Results of the sweep's trials.

    Raises:
        VidflowError: If a file of a stage is missing or damaged.
    """
    config = experiment.config
    sources = [experiment.scanned_shards.address, *experiment.features.values()]
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
    )


def _sections(experiment: Experiment, results: list[TrialResult]) -> list[TaskSection]:
    """Return a section per task."""
    config = experiment.config
    baselines = experiment.finished(experiment.sweep).details["baselines"]
    sections = []
    frames = ClipFrames(experiment.scanned_shards)
    for task in get_args(TaskName):
        objective, mode = objective_of(config.trials, task)
        trials = [result for result in results if result.settings["task"] == task]
        if not trials:
            continue
        best = rank_trials(trials, objective, mode)[0].result
        reader = FeatureReader(experiment.features[str(best.settings["features"])].directory)
        classified, pictured = read_classified(best), read_pictured(best)
        sections.append(
            TaskSection(
                task=task,
                objective=objective,
                mode=mode,
                trials=trials,
                baseline=baselines.get(task, {}),
                baseline_answer=spec_of(task).trivial.words,
                class_names=reader.metadata["class_names"] if classified else (),
                examples=_examples(frames, reader, classified, config.report.num_examples) if classified else (),
                confusion=classified.confusion if classified else None,
                pictures=draw_clips(
                    task, pictured, reader, frames, objective=objective, num_clips=config.report.num_examples
                )
                if pictured
                else (),
            )
        )
    return sections


def _examples(frames: ClipFrames, reader: FeatureReader, classified: Classified, num_examples: int) -> list[Example]:
    """Return example clips: up to half of them are mistakes; they are in the order of the split."""
    names = reader.metadata["class_names"]
    wrong = np.flatnonzero(classified.labels != classified.predicted)
    right = np.flatnonzero(classified.labels == classified.predicted)
    num_wrong = min(len(wrong), num_examples // 2)
    chosen = [*wrong[:num_wrong], *right[: num_examples - num_wrong]]
    return [
        Example(
            frames=frames(key := reader.keys[classified.indices[clip]]),
            key=key,
            label=names[classified.labels[clip]],
            predicted=names[classified.predicted[clip]],
            probability=float(classified.probabilities[clip]),
        )
        for clip in chosen
    ]


def _provenance(config: Config, stages: list[Address]) -> dict[str, str]:
    packages = ("vidflow", "torch", "timm", "ray", "mlflow", "webdataset", "pyarrow", "av")
    return {
        **{f"fingerprint {address.directory.parent.name}": address.fingerprint for address in stages},
        "encoder": f"{encoder_title(config.encoder)}, {config.encoder.weights}",
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
