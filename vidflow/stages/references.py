"""What a config refers to below its root: the folder of everything that its commands make or read."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vidflow.config.paths import absolute_path
from vidflow.config.roots import place_path
from vidflow.config.schema import Trial
from vidflow.config.search import draw_candidates
from vidflow.errors import VidflowError
from vidflow.objects import is_mirror
from vidflow.stages.experiment import Experiment, is_reduced_from_cache
from vidflow.stages.finish import peek_manifest
from vidflow.stages.root_files import STAGE_FOLDERS
from vidflow.stages.trained import TRIALS, read_sweep
from vidflow.store.initial_weights import list_initial, read_initial
from vidflow.store.layout import read_sealed

log = logging.getLogger(__name__)
STARTED = "started.json"
"""Trials of a search, which chooses them as results come in."""


@dataclass(slots=True)
class References:
    """Folders that must stay.

    Attributes:
        folders: The folders.
        shards: Digests of the shards in them; what an evaluation made from one of these stays too.
        evaluates: Whether a config evaluates models.
        stages: Stages of which everything stays, as a config that evaluates may not have them at all.
    """

    folders: set[Path] = field(default_factory=set)
    shards: set[str] = field(default_factory=set)
    evaluates: bool = False
    stages: set[str] = field(default_factory=set)


def find_references(experiment: Experiment) -> References:
    """Return what a config refers to.

    Raises:
        VidflowError: If that cannot be known, for example because a video has not been scanned or weights are gone.
    """
    found = References(evaluates=bool(experiment.config.evaluate.models))
    try:
        found.folders |= set(list_folders(experiment))
    except VidflowError as error:
        if not found.evaluates:
            raise
        log.warning("%s; all of its shards, features and trials stay", error)
        found.folders.add(experiment.videos.directory)
        found.stages |= {"shards", "features", "sweeps", "trials", "reports"}
    if found.evaluates:
        found.folders |= {view.directory for view in _evaluated_shards(experiment)}
    found.folders |= set(_named_folders(experiment))
    found.folders |= set(_origins(experiment))
    for folder in found.folders:
        manifest = peek_manifest(folder) if folder.parent.name == "shards" else None
        found.shards |= {row["sha256"] for row in manifest.files} if manifest is not None else set()
    return found


def list_folders(experiment: Experiment) -> Iterator[Path]:
    """Yield the folders of videos, shards, features, the sweep, its trials and the report.

    Raises:
        VidflowError: If a video has no scan of its present content, so that the addresses are not known.
    """
    config = experiment.config
    if config.video.manifest is None:
        yield experiment.videos.directory
    if experiment.shards is None:
        raise VidflowError(
            f"{experiment.root}: not all videos of this configuration are scanned, so nobody knows which shards and "
            f"features belong to it; run `{experiment.command('shard')}` first"
        )
    yield experiment.shards.address.directory
    for name, features in config.features.items():
        yield experiment.features[name].directory
        if is_reduced_from_cache(features):
            yield experiment.dense(name).directory
    yield experiment.sweep.directory
    yield experiment.report.directory
    yield from (experiment.trial(trial).directory for trial in draw_candidates(config)[0])
    yield from _sweep_trials(experiment)


def _sweep_trials(experiment: Experiment) -> Iterator[Path]:
    """Yield the trials that the sweep has run, also those that a search chose."""
    directory = experiment.sweep.directory
    if (sweep := read_sweep(directory)) is not None:
        yield from (experiment.root / TRIALS / key for key in sweep.keys)
    started = read_sealed(directory / STARTED) or {"trials": []}
    yield from (experiment.trial(Trial(**values)).directory for values in started["trials"])


def _evaluated_shards(experiment: Experiment) -> Iterator[Any]:
    """Yield the addresses of the shards that an evaluation's models see."""
    from vidflow.stages.evaluation.models import ready_model  # imports torch, which takes seconds

    labels = sorted({item.label for item in experiment.rows[0] if item.label})
    for name in experiment.config.evaluate.models:
        for view in ready_model(experiment.config, name, labels).views:
            work = experiment.with_config(view.config).shards
            if work is None:
                raise VidflowError(
                    f"{experiment.root}: not all videos that evaluate.models.{name} sees are scanned; run "
                    f"`{experiment.command('evaluate')}` first"
                )
            yield work.address


def _named_folders(experiment: Experiment) -> Iterator[Path]:
    """Yield the folders that a setting names by a path, such as weights that were made below the same root."""
    root = Path(absolute_path(str(experiment.root)))
    for text in _texts(asdict(experiment.config)):
        if "\0" in text or "/" not in text:
            continue
        path = place_path(experiment.config, text)
        path = path if is_mirror(path) else Path(absolute_path(text))
        if path.is_relative_to(root) and (parts := path.relative_to(root).parts)[:1] and parts[0] in STAGE_FOLDERS:
            yield experiment.root.joinpath(*parts[:2])


def _origins(experiment: Experiment) -> Iterator[Path]:
    """Yield the trials that `init_from` and a file of merged adapters come from, and the features of the former."""
    for source in list_initial(experiment.config):
        start = read_initial(experiment.config, source)
        yield start.path.parent
        yield experiment.root / TRIALS / start.trial  # a run may be that of a trial under this root
        if start.features:
            yield experiment.root / "features" / start.features
    if (weights := Path(experiment.config.encoder.weights)).suffix == ".safetensors":
        from vidflow.models.encoder.merged_file import read_record  # imports torch, which takes seconds

        if (merged := read_record(weights)) is not None:
            yield experiment.root / TRIALS / merged.trial


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


__all__ = ["STARTED", "References", "find_references", "list_folders"]
