"""What a sweep needs in a manifest, checked before anything starts: splits, labels and annotations."""

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pyarrow.compute as pc

from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates
from vidflow.config.tasks import TaskName, facts_of
from vidflow.errors import ConfigError
from vidflow.records import Reject, VideoItem
from vidflow.video.video_rows import VideoRows


def check_rows(config: Config, items: Sequence[VideoItem], rejects: Sequence[Reject]) -> None:
    """Check that the rows of a manifest have what the trials need.

    Args:
        config: The experiment.
        items: Usable rows.
        rejects: Malformed rows.

    Raises:
        ConfigError: If something is missing; the message names every problem.
    """
    problems = list(_problems(config, items))
    if problems and rejects:
        problems.append(f"{len(rejects)} of {len(items) + len(rejects)} rows are malformed: {rejects[0].message}")
    if problems:
        raise ConfigError("\n".join(f"video.manifest: {config.video.manifest}: {problem}" for problem in problems))


def split_problems(config: Config, items: Sequence[VideoItem]) -> Iterator[str]:
    """Yield what is wrong with the splits of a manifest's rows: those that trials use are missing or written otherwise.

    Args:
        config: The experiment.
        items: Usable rows.
    """
    counts, splits = _count(VideoRows.of(items), "split"), config.trials.splits
    got = ", ".join(f"{name!r} ({count} rows)" for name, count in counts.most_common(10)) or "none"
    for use, split in asdict(splits).items():
        if split is not None and not counts[split]:
            alike = [name for name in counts if name.casefold() == split.casefold()]
            name = alike[0] if alike else "NAME"
            yield (
                f"no row of split {split!r}; got {got}; wanted it as trials.splits.{use}: give it to some rows, or set "
                f"trials.splits.{use}={name}"
            )
    for split in counts:
        if split not in splits.used and (near := [name for name in splits.used if name.casefold() == split.casefold()]):
            yield f"{counts[split]} rows are of split {split!r}; wanted {near[0]!r}, as in trials.splits"


def _problems(config: Config, items: Sequence[VideoItem]) -> Iterator[str]:
    yield from split_problems(config, items)
    used = VideoRows.of(items).in_splits(config.trials.splits.used)
    tasks = {trial.task for trial in draw_candidates(config)[0]}
    if (wanting := sorted(task for task in tasks if facts_of(task).needs_labels)) and used:
        labels = [name for name in _count(VideoRows.of(items), "label") if name]
        if unlabelled := used.take(pc.equal(used.table["label"], "")):
            yield (
                f"{len(unlabelled)} of {len(used)} rows have no label, such as {unlabelled[0].path}; wanted one in "
                f"each, as {', '.join(wanting)} is among the tasks"
            )
        elif len(labels) < 2:
            yield f"only one label, {', '.join(map(repr, labels))}; {', '.join(wanting)} needs at least 2"
    if needy := sorted(task for task in tasks if facts_of(task).annotations):
        has_truth = pc.is_valid(used.table["annotations"])
        if bare := used.take(pc.invert(has_truth)):
            yield (
                f"{len(bare)} of {len(used)} rows have no annotations, such as {bare[0].path}; wanted an .npz in "
                f"each, as the task {', '.join(needy)} learns from it"
            )
        yield from _missing_arrays(used.take(has_truth)[:1], needy)


def _count(rows: VideoRows, column: str) -> Counter[str]:
    """Return how often each value of a column occurs, in the order in which they first occur."""
    return Counter({each["values"]: each["counts"] for each in pc.value_counts(rows.table[column]).to_pylist()})


def _missing_arrays(items: Sequence[VideoItem], tasks: Sequence[TaskName]) -> Iterator[str]:
    """Yield which arrays the annotations of some videos lack; a file that cannot be read becomes a reject later."""
    for item in items:
        try:
            with zipfile.ZipFile(str(item.annotations)) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
            continue
        for task in tasks:
            if (wanted := facts_of(task).truth) not in names:
                yield f"{item.annotations} holds {', '.join(sorted(names))}; wanted `{wanted}` for the task {task}"
