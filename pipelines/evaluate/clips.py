"""The clips of an evaluation: labels of the manifest, and the shards of every view."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines import shard
from vidflow.config.schema import Config
from vidflow.errors import ConfigError
from vidflow.stages.address import Address
from vidflow.stages.clips import ChosenClip
from vidflow.stages.evaluation.files import key_number
from vidflow.stages.evaluation.models import ReadyModel
from vidflow.stages.evaluation.points import Point
from vidflow.stages.evaluation.views import count_padded
from vidflow.stages.evaluation.worker import EvaluateUnit
from vidflow.stages.experiment import Experiment
from vidflow.store.features import CLIPS_TABLE, ClipRow
from vidflow.store.rows import read_rows


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of the manifest.

    Attributes:
        known: All labels of the splits that are used, sorted.
        evaluated: Those of the evaluated split, sorted.
    """

    known: list[str]
    evaluated: list[str]


def list_labels(config: Config) -> Labels:
    """Return the labels of the manifest.

    Raises:
        ConfigError: If there is no row of a split that is used, or one without a label.
    """
    evaluate = config.evaluate
    rows, _ = Experiment(replace(config, video=replace(config.video, splits=None))).rows
    wanted = {"split": evaluate.split, "fit_head": evaluate.fit_head}
    found = {item.split for item in rows}
    for key, split in wanted.items():
        if split is not None and split not in found:
            raise ConfigError(
                f"evaluate.{key}: got {split!r}, but the manifest has no row of that split; got "
                f"{', '.join(sorted(found)) or 'none'}"
            )
    items = [item for item in rows if item.split in wanted.values()]
    if bare := [item for item in items if not item.label]:
        raise ConfigError(
            f"video.manifest: {len(bare)} rows of split {bare[0].split!r} have no label, such as {bare[0].path}; "
            "wanted one in each row that is evaluated"
        )
    ours = {item.label for item in items if item.split == evaluate.split}
    return Labels(sorted({item.label for item in items}), sorted(ours))


class ModelClips:
    """The clips of one model: the shards of its views, by the name of the view."""

    def __init__(self, experiment: Experiment, model: ReadyModel, split: str) -> None:
        """Make the shards that are not there.

        Args:
            experiment: The experiment.
            model: The model.
            split: Split that is evaluated.
        """
        self.shards = {view.name: experiment.with_config(view.config) for view in model.views}
        for shards in self.shards.values():
            shard.main(shards)
        self._split = split
        self._counts = {name: _count_clips(shards, split) for name, shards in self.shards.items()}

    def units(self, view: str, point: Point, address: Address) -> list[EvaluateUnit]:
        """Return a unit of a point for every shard of a view."""
        shards, counts = self.shards[view], self._counts[view]
        where = shards.finished_shards.address
        return [
            EvaluateUnit(
                file=f"{address.directory.name}/{Path(row['file']).stem}.npz",
                point=point,
                shards=where.directory,
                shard=row["file"],
                source_sha256=row["sha256"],
                num_clips=counts[row["file"]],
            )
            for row in shards.finished(where).files
        ]

    @property
    def plainest(self) -> str:
        """The view of the central square if there is one, else the first."""
        return "center" if "center" in self.shards else next(iter(self.shards))

    @property
    def label_names(self) -> list[str]:
        """Labels by the numbers that shards hold."""
        return self.shards[self.plainest].finished_shards.class_names

    @property
    def video_of(self) -> dict[int, str]:
        """The video of each clip of the split."""
        return {key_number(clip.key): clip.video for clip in self._chosen()}

    @property
    def num_clips(self) -> int:
        """Clips of the split in one square."""
        return len(self._chosen())

    @property
    def num_padded(self) -> int:
        """Those of them whose video is shorter than the clip."""
        return count_padded([clip.times for clip in self._chosen()])

    def _chosen(self) -> Sequence[ChosenClip]:
        units = self.shards[self.plainest].finished_shards.units
        return [clip for unit in units for clip in unit.clips if clip.split == self._split]


def _count_clips(shards: Experiment, split: str) -> Counter[str]:
    """Count the clips of a split in each shard."""
    rows = read_rows(shards.finished_shards.address.directory / CLIPS_TABLE, ClipRow)
    return Counter(row.file for row in rows if row.split == split)


__all__ = ["Labels", "ModelClips", "list_labels"]
