"""The report's content about several feature sets: their costs, and pictures of the patches that each one merged."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from vidflow.config.search import objective_of
from vidflow.config.tasks import TaskName
from vidflow.records import TrialResult
from vidflow.report.formats import is_share
from vidflow.report.pareto import MergedClip, ParetoSection, compare_features, for_all_frames, tint_tokens
from vidflow.stages.clip_frames import ClipFrames
from vidflow.stages.cost import FeatureCost, read_cost
from vidflow.stages.experiment import Experiment, is_reduced_from_cache
from vidflow.store.features import FeatureReader

NUM_CLIPS = 3
"""Clips whose merging is shown."""


def compare_costs(experiment: Experiment, results: Sequence[TrialResult]) -> list[ParetoSection]:
    """Return a section per task whose trials use more than one feature set."""
    config = experiment.config
    # A cost per stored clip says nothing about trials in which the encoder runs.
    results = [result for result in results if result.settings.get("feed", "features") == "features"]
    used = {str(result.settings["features"]) for result in results}
    if len(used) < 2:
        return []
    costs = {name: _read_cost(experiment, name) for name in config.features if name in used}
    clips = picture_merging(experiment, costs)
    sections: list[ParetoSection] = []
    for task in get_args(TaskName):
        objective, mode = objective_of(config.trials, task)
        section = compare_features(
            results,
            costs,
            task=task,
            objective=objective,
            mode=mode,
            is_share=is_share(objective),
            clips=() if sections else clips,
        )
        sections += [section] if section is not None else []
    return sections


def picture_merging(experiment: Experiment, costs: Mapping[str, FeatureCost]) -> list[MergedClip]:
    """Return the first validation clips, each with the tokens of every reducer that is not random."""
    readers = {
        name: FeatureReader(experiment.features[name].directory)
        for name, cost in costs.items()
        if cost.is_reduced and not cost.is_random
    }
    if not readers:
        return []
    frames_of = ClipFrames(experiment.scanned_shards)
    clips = []
    for key in frames_of.keys(experiment.config.trials.splits.val)[:NUM_CLIPS]:
        frames = frames_of(key)
        tinted = [
            (f"{name}: {costs[name].reducer}", picture)
            for name, reader in readers.items()
            if (picture := _tint(reader, key, frames)) is not None
        ]
        clips.append(MergedClip(key=key, rows=(("frames", frames), *tinted)))
    return clips


def _tint(reader: FeatureReader, key: str, frames: np.ndarray) -> np.ndarray | None:
    """Return a clip's frames tinted by token; None if this feature set left the clip out."""
    if key not in reader.keys:
        return None
    assignment = reader[reader.keys.index(key)].assignment
    height, width = reader.metadata["grid"]
    if assignment is None:
        return None
    return tint_tokens(frames, for_all_frames(assignment[:, -1], len(frames)), (height, width))


def _read_cost(experiment: Experiment, name: str) -> FeatureCost:
    config, address = experiment.config, experiment.features[name]
    features = config.features[name]
    dense = experiment.manifest(experiment.dense(name)) if is_reduced_from_cache(features) else None
    return read_cost(
        name,
        directory=address.directory,
        manifest=experiment.finished(address),
        dense=dense,
        encoder=config.encoder,
        features=features,
    )
