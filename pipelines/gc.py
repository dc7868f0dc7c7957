"""Show what no given config refers to, and delete it: `vidflow gc CONFIG.yaml ... [--yes]`."""

import argparse
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.display import Bar, Waiting, count, shown
from pipelines.plan.record import locate_plan
from pipelines.verify import format_rows
from vidflow.errors import ConfigError
from vidflow.objects import show_urls
from vidflow.report.formats import format_bytes, format_metric
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import peek_manifest
from vidflow.stages.garbage import Garbage, find_garbage, remove_garbage
from vidflow.stages.inventory import Inventory, MadeTrial, is_root, take_inventory
from vidflow.stages.references import References, find_references
from vidflow.stages.sources import is_config, open_experiment
from vidflow.store.layout import exclusive

log = logging.getLogger("vidflow")
_DAY = 86400.0
_MOST_ROWS = 40


def main(parsed: argparse.Namespace) -> None:
    """Print what nothing refers to, and delete it with `--yes`.

    Raises:
        ConfigError: If a config has problems, or the configs have different roots.
        VidflowError: If a config's files cannot be located, or another command holds the root.
    """
    experiments = _open(parsed.configs, parsed.root)
    root = experiments[0].root
    if not parsed.yes:
        found = _find(root, experiments, parsed.older_than)
        _show(root, found, "nothing is deleted without --yes")
        return
    with exclusive(root):
        found = _find(root, experiments, parsed.older_than)
        _show(root, found, "deleting")
        if found:
            _remove(root, found)


def _open(words: Sequence[str], root: str | None) -> list[Experiment]:
    """Return the experiments whose files stay: that of each config alone, and that of all of them merged.

    Merged too, because `vidflow run` merges its files: nobody who repeats the words of that command loses its work.
    Several files and overrides in quotes, as one word, are those of one command, and no file among them stands alone.

    Raises:
        ConfigError: If there is no config, one has problems, or their roots differ.
    """
    files = [word for word in words if is_config(word) and not _is_command(word)]
    commands = [_split(word) for word in words if _is_command(word)]
    if not files and not commands:
        raise ConfigError("no config given; wanted those whose files stay, such as `vidflow gc conf/demo.yaml`")
    overrides = [word for word in words if word not in files and not _is_command(word)]
    if root is not None:
        overrides.append(f"root={root}")
    merged = [files] if len(files) > 1 else []
    experiments = [open_experiment([*each, *overrides]) for each in (*([file] for file in files), *merged, *commands)]
    roots = {each.root: None for each in experiments}
    if len(roots) == 1 and not is_root(experiments[0].root):
        raise ConfigError(f"{experiments[0].root}: no experiment here; wanted the root of one, or --root ROOT")
    if len(roots) > 1:
        raise ConfigError(
            f"the configs have different roots: {', '.join(map(str, roots))}; name one with --root, and what the "
            "others refer to below it stays as well; or give the files of one command in quotes, such as "
            "`vidflow gc conf/demo.yaml 'conf/demo.yaml conf/pretrain_demo.yaml'`"
        )
    return experiments


def _is_command(word: str) -> bool:
    """Whether a word holds the words of a command: a config, a space, and more; not a file with a space in its name."""
    first, _, rest = word.strip().partition(" ")
    return bool(rest) and "=" not in first and is_config(first) and not Path(word).exists()


def _split(word: str) -> list[str]:
    try:
        return shlex.split(word)
    except ValueError as error:
        raise ConfigError(f"got {word!r}, wanted the words of one command ({error})") from error


def _find(root: Path, experiments: Sequence[Experiment], days: float | None) -> list[Garbage]:
    with shown(Waiting("gc: looking")):
        references = [find_references(experiment) for experiment in experiments]
        merged = References(
            folders=set().union(*(each.folders for each in references)),
            shards=set().union(*(each.shards for each in references)),
            evaluates=any(each.evaluates for each in references),
            stages=set().union(*(each.stages for each in references)),
        )
        plans = [locate_plan(experiment.config).parent for experiment in experiments]
        found = find_garbage(root, merged, plans)
    if days is None:
        return found
    oldest = time.time() - days * _DAY
    return [each for each in found if each.changed is not None and each.changed < oldest]


def _show(root: Path, found: Sequence[Garbage], then: str) -> None:
    """Print what nothing refers to, and how much it is."""
    if not found:
        log.info("gc: %s: nothing to delete", root)
        return
    about, now = About(take_inventory(root)), time.time()
    rows = [
        [str(each.path.relative_to(root)), format_bytes(each.num_bytes), _age(each, now), about(each)] for each in found
    ]
    print("\n".join([show_urls(f"{root}: no given config refers to"), *format_rows(rows[:_MOST_ROWS])]))
    if len(rows) > _MOST_ROWS:
        print(f"  and {len(rows) - _MOST_ROWS} more")
    if any(each.kind in ("trials", "sweeps") for each in found):
        print("MLflow keeps the runs of these trials with their metrics and models; nothing is deleted there.")
    num_bytes = format_bytes(sum(each.num_bytes for each in found))
    log.info("gc: %s: %s, %s; %s", root, count(len(found), "piece"), num_bytes, then)


def _remove(root: Path, found: Sequence[Garbage]) -> None:
    started, num_bytes = time.monotonic(), 0
    bar = Bar("gc", len(found), unit="pieces")
    with shown(bar):
        for number, each in enumerate(remove_garbage(root, found), 1):
            num_bytes += each.num_bytes
            bar.update(number)
    seconds = time.monotonic() - started
    log.info("gc: %s: %s deleted, %s in %.1f s", root, count(len(found), "piece"), format_bytes(num_bytes), seconds)


def _age(each: Garbage, now: float) -> str:
    if each.changed is None:
        return "age unknown"
    minutes = max(0.0, now - each.changed) / 60
    if minutes < 120:
        return f"{minutes:.0f} min old"
    return f"{minutes / 60:.0f} h old" if minutes < 2880 else f"{minutes / 1440:.0f} days old"


class About:
    """What made a folder, in words."""

    def __init__(self, inventory: Inventory) -> None:
        """Keep what is below the root."""
        parts = (inventory.videos, inventory.shards, inventory.features, inventory.sweeps, inventory.reports)
        self._folders = {each.directory: each for part in parts for each in part}
        self._trials = {trial.directory: trial for trial in inventory.trials}

    def __call__(self, garbage: Garbage) -> str:
        """Return the words."""
        if garbage.kind == "leftover":
            return "left by a killed or failed writer"
        if garbage.kind == "index":
            return "scans that newer ones replace"
        if (trial := self._trials.get(garbage.path)) is not None:
            return _about_trial(trial)
        made = self._folders.get(garbage.path)
        if made is None:
            return count(len(garbage.files), "file")
        if made.state != "done":
            return made.state
        match garbage.kind:
            case "features":
                reducer = "" if made.reducer in ("", "none") else f", {made.reducer}"
                return f"{made.name}, {made.encoder}{reducer}, {count(made.num_clips, 'clip')}"
            case "shards":
                manifest = peek_manifest(garbage.path)
                settings = manifest.settings if manifest is not None else {}
                return f"{count(made.num_clips, 'clip')}, {settings.get('size')} px, {settings.get('image_format')}"
            case "videos":
                return count(made.num_clips, "rendered video")
            case "sweeps":
                return count(made.num_trials, "trial")
            case _:
                return "page"


def _about_trial(trial: MadeTrial) -> str:
    words = [str(trial.settings[name]) for name in ("task", "core", "features") if name in trial.settings]
    if trial.score is not None:
        words.append(f"{trial.metric} {format_metric(trial.metric, trial.score)}")
    return ", ".join([*words, *([trial.state] if trial.state != "completed" else [])])


__all__ = ["main"]
