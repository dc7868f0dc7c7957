"""Evaluate pre-trained video classifiers on a split, with token reduction: `vidflow evaluate CONFIG.yaml`."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from pipelines import synth
from pipelines.evaluate.clips import Labels, ModelClips, list_labels
from pipelines.evaluate.heads import fit_heads
from pipelines.evaluate.page import write_page
from pipelines.evaluate.trial import evaluate_trial
from pipelines.evaluate.units import evaluate_units, resolved_dtype
from pipelines.ray_pool import log
from pipelines.ray_session import ray_session
from vidflow.config.fingerprints import fingerprint, tracking_settings
from vidflow.config.load import config_to_yaml
from vidflow.config.schema import Config
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import ConfigError
from vidflow.objects import show_urls
from vidflow.stages.address import Address
from vidflow.stages.evaluation.files import read_logits
from vidflow.stages.evaluation.labels import match_labels
from vidflow.stages.evaluation.models import FOLDER, ReadyModel, locate_point, ready_model
from vidflow.stages.evaluation.points import Point, cost_of, list_points
from vidflow.stages.evaluation.results import ModelResult, PointResult
from vidflow.stages.evaluation.scores import VideoAnswers, answer_videos, score
from vidflow.stages.evaluation.table import describe_model, points_table, results_table
from vidflow.stages.evaluation.worker import EvaluateUnit
from vidflow.stages.experiment import Experiment
from vidflow.store.layout import FileEntry
from vidflow.tracking import FeatureData, Tracker

View = tuple[Point, str]


def main(experiment: Experiment) -> None:
    """Make the clips of every model, evaluate the points that have no result yet, and write the page.

    Raises:
        ConfigError: If there is no model, or a label is no class of a classifier.
    """
    evaluate = experiment.config.evaluate
    if evaluate.trial is not None:
        evaluate_trial(experiment, evaluate.trial)
        return
    if not evaluate.models:
        raise ConfigError("evaluate.models: got none, wanted at least one; `vidflow settings evaluate` explains them")
    started = time.monotonic()
    experiment.runs_on = True
    if not experiment.has_rows:
        synth.main(experiment)
        experiment.published("synth")
    labels = list_labels(experiment.config)
    # Checked before Ray starts and any video is decoded; a fitted layer knows the labels.
    evaluation = None if evaluate.fit_head else Evaluation(experiment, labels, given=experiment.config)
    with ray_session(experiment.config):
        if evaluate.fit_head:
            config = fit_heads(experiment, labels.known, evaluate.fit_head)
            evaluation = Evaluation(experiment.with_config(config), labels, given=experiment.config)
        assert evaluation is not None
        evaluation.make_clips()
        with experiment.exclusive():
            results = evaluation.run()
            page = evaluation.publish(results)
    print("\n".join(results_table(results)))
    num_points = sum(len(result.points) for result in results)
    log.info("evaluate: %d points in %.0f s -> %s", num_points, time.monotonic() - started, page)
    log.info("all runs: %s", experiment.command("ui"))


def show(experiment: Experiment) -> None:
    """Print the points with their cost; start nothing."""
    known = list_labels(experiment.config).known if experiment.has_rows else []
    models = logging.getLogger("vidflow.models")
    level = models.level
    models.setLevel(logging.ERROR)  # the table shows the tokens of every block, so also where r is capped
    try:
        print("\n".join(points_table(experiment.config, known)))
    finally:
        models.setLevel(level)


class Evaluation:
    """All points of an evaluation: their units, and what comes of them."""

    def __init__(self, experiment: Experiment, labels: Labels, *, given: Config) -> None:
        """Check that every label is a class of every model, and that every reducer fits its model.

        Args:
            experiment: The experiment, with fitted weights in place of the user's.
            labels: Labels of the manifest.
            given: The user's settings, for the page and the runs.

        Raises:
            ConfigError: If a label is not.
            VidflowError: If a reducer does not fit.
        """
        self._experiment, self._config, self._given = experiment, experiment.config, given
        evaluate = self._config.evaluate
        self._models = {name: ready_model(self._config, name, labels.known) for name in evaluate.models}
        self._classes = {
            name: match_labels(labels.evaluated, model.outline.class_names, model=name)
            for name, model in self._models.items()
        }
        self._points = list_points(evaluate)
        self._costs = {
            point: cost_of(point, evaluate.models[point.model], self._models[point.model].outline.shape)
            for point in self._points
        }
        self._clips: dict[str, ModelClips] = {}

    def make_clips(self) -> None:
        """Make the shards that are not there; the root must not be locked."""
        split = self._config.evaluate.split
        self._clips = {name: ModelClips(self._experiment, model, split) for name, model in self._models.items()}

    def run(self) -> list[ModelResult]:
        """Evaluate the points that have no files yet, and return all results."""
        units = {
            (point, view): self._clips[point.model].units(view, point, self._address(point, view))
            for point in self._points
            for view in self._clips[point.model].shards
        }
        flat: list[EvaluateUnit] = [unit for each in units.values() for unit in each]
        setups = {name: model.setup for name, model in self._models.items()}
        entries = evaluate_units(self._config, setups, flat, split=self._config.evaluate.split)
        found = {unit.file: entry for unit, entry in zip(flat, entries, strict=True)}
        by_view = {view: [found[unit.file] for unit in each] for view, each in units.items()}
        return [self._model_result(model, by_view) for model in self._models.values()]

    def publish(self, results: Sequence[ModelResult]) -> Path:
        """Write the page, log every point as a run under one parent, and return where the page is."""
        config = self._config
        shards = {
            f"{name} {view}": each.finished_shards.address
            for name, clips in self._clips.items()
            for view, each in clips.shards.items()
        }
        keys = {
            point: fingerprint([self._address(point, view).fingerprint for view in self._clips[point.model].shards])
            for point in self._points
        }
        key = fingerprint([list(keys.values()), tracking_settings(config.tracking)])
        written = write_page(self._given, results, self._experiment.root / FOLDER / key, shards)
        with Tracker(
            self._experiment.root, key, uri=store_uri(config), experiment=config.tracking.experiment
        ) as tracker:
            tracker.open_sweep(
                name=f"{config.report.title}: evaluation",
                params={
                    "protocol": config.evaluate.protocol,
                    "data_set": config.evaluate.data_set,
                    "split": config.evaluate.split,
                    "fit_head": config.evaluate.fit_head,
                    "num_points": len(self._points),
                },
                config_yaml=config_to_yaml(self._given),
                datasets=[
                    FeatureData(
                        name=f"{name} {view}",
                        identity=shards[f"{name} {view}"].identity,
                        place=show_urls(str(shards[f"{name} {view}"].directory)),
                        clips={config.evaluate.split: clips.num_clips},
                    )
                    for name, clips in self._clips.items()
                    for view in clips.shards
                ],
            )
            for measured in (each for result in results for each in result.points):
                self._log_point(tracker, keys[measured.point], measured)
            for path in written:
                tracker.log_file(tracker.sweep, path, path.name)
            tracker.finish(tracker.sweep, "FINISHED")
        return written[0]

    def _address(self, point: Point, view: str) -> Address:
        model, shards = self._models[point.model], self._clips[point.model].shards[view]
        return locate_point(
            self._config,
            model,
            point,
            shards.finished_shards.address,
            resolved_dtype(self._config),
            split=self._config.evaluate.split,
        )

    def _model_result(self, model: ReadyModel, entries: Mapping[View, Sequence[FileEntry]]) -> ModelResult:
        clips, folder = self._clips[model.name], self._experiment.root / FOLDER
        video_of, names = clips.video_of, clips.label_names
        class_of = {head: [of.get(label, -1) for label in names] for head, of in self._classes[model.name].items()}
        results: list[PointResult] = []
        baseline: VideoAnswers | None = None
        for point in (point for point in self._points if point.model == model.name):
            ours = [entry for view in clips.shards for entry in entries[point, view]]
            answers = answer_videos([read_logits(folder / e.file, e.sha256) for e in ours], video_of, class_of)
            results.append(self._point_result(point, ours, answers, baseline))
            baseline = answers if baseline is None else baseline
        return ModelResult(
            name=model.name,
            about=describe_model(model),
            points=results,
            num_padded=clips.num_padded,
            num_clips=clips.num_clips,
        )

    def _point_result(
        self, point: Point, entries: Sequence[FileEntry], answers: VideoAnswers, baseline: VideoAnswers | None
    ) -> PointResult:
        paces = [seconds / num_clips for entry in entries for num_clips, seconds in entry.details["pace"]]
        shares = [share for entry in entries if (share := entry.details["matching_share"]) is not None]
        return PointResult(
            point=point,
            scores=score(answers, baseline),
            cost=self._costs[point],
            # The median, because a batch may wait for other programs.
            clips_per_second=1 / median(paces) if paces else None,
            matching_share=sum(shares) / len(shares) if shares else None,
        )

    def _log_point(self, tracker: Tracker, key: str, measured: PointResult) -> None:
        point, recipe = measured.point, self._models[measured.point.model].setup.recipe
        run = tracker.open_trial(
            key,
            name=f"{point.model} {point.label}",
            params={
                **asdict(point),
                "family": recipe.family,
                "weights": recipe.weights,
                "tokens_per_block": ",".join(map(str, measured.cost.tokens)),
            },
        )
        tracker.finish(run, "FINISHED", metrics=measured.metrics)


__all__ = ["main", "show"]
