"""List what experiments have made, from their files alone: `vidflow ls [ROOT|CONFIG.yaml]`.

Neither Ray, torch nor MLflow is imported, so it answers at once, also beside a command that is at work.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.display import count
from vidflow.errors import VidflowError
from vidflow.objects import show_urls
from vidflow.report.formats import format_bytes, format_magnitude, format_metric
from vidflow.stages.experiment import Experiment
from vidflow.stages.inventory import Inventory, MadeFolder, MadeTrial, take_inventory
from vidflow.stages.references import list_folders
from vidflow.stages.sources import RUNS, find_roots
from vidflow.stages.trained import predict_command

_ALWAYS = ("core", "features", "seed")


def main(arguments: argparse.Namespace) -> None:
    """Print what is below the roots.

    Raises:
        ConfigError: If a place is no experiment, or a config has problems.
    """
    roots, experiment = find_roots(arguments.places)
    inventories = [take_inventory(root) for root in roots]
    if arguments.json:
        print(json.dumps({"experiments": [asdict(each) for each in inventories]}, indent=1, default=_as_text))
    elif not inventories:
        print(f"no experiment below {RUNS.absolute()}; name a root or a config")
    else:
        current = _current_keys(experiment)
        print("\n\n".join(_describe(each, current) for each in inventories))


def _as_text(value: Any) -> str:
    return show_urls(str(value))


def _current_keys(experiment: Experiment | None) -> frozenset[str]:
    """Return the keys of all that a config stands for, as far as they are known."""
    if experiment is None or experiment.shards is None:
        return frozenset()
    keys: set[str] = set()
    with contextlib.suppress(VidflowError):  # without the weights of `init_from`, the keys of the sweep are not known
        for folder in list_folders(experiment):
            keys.add(folder.name)
    return frozenset(keys)


def _describe(inventory: Inventory, current: frozenset[str]) -> str:
    """Return the tables of one root; what belongs to the config is marked with a star."""
    names = {each.key: each.name for each in inventory.features}
    trials = {trial.key: trial for trial in inventory.trials}
    columns: dict[str, Callable[[MadeFolder], str]] = {
        "clips": lambda each: str(each.num_clips),
        "rejects": lambda each: str(each.num_rejects),
        "size": lambda each: format_bytes(each.num_bytes),
    }
    blocks = [_short(inventory.root)]
    blocks += _table("shards", inventory.shards, {**columns, "used by": lambda each: _used_by(each, names)}, current)
    blocks += _table(
        "features",
        inventory.features,
        {
            "name": lambda each: each.name,
            **columns,
            "encoder": lambda each: each.encoder,
            "reducer": lambda each: each.reducer,
            "used by": lambda each: _used_by(each, names),
        },
        current,
    )
    blocks += _table(
        "sweeps",
        inventory.sweeps,
        {
            "trials": lambda each: str(each.num_trials),
            "best": lambda each: "; ".join(_describe_best(trials[key]) for key in each.best),
            "MLflow run": lambda each: each.run_id,
        },
        current,
    )
    blocks += _table("trials", inventory.trials, _trial_columns(inventory.trials), current)
    blocks += [
        f"report    {_short(each.directory / 'report.html')}" for each in inventory.reports if each.state == "done"
    ]
    best = [trials[key] for sweep in inventory.sweeps for key in sweep.best if trials[key].is_usable]
    if best:
        blocks.append(f"next: {predict_command(_short(best[0].directory), task=best[0].settings['task'])}")
    if current:
        blocks.append("* of this config")
    return "\n\n".join(blocks)


def _short(path: Path) -> str:
    """Return a path relative to the current folder, if it is below that, or the address of an object."""
    return show_urls(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _used_by(each: MadeFolder, names: dict[str, str]) -> str:
    users = [f"features {names[key]}" if key in names else f"sweep {key}" for key in each.used_by]
    trials = [count(each.num_trials, "trial")] if each.num_trials else []
    return ", ".join([*users, *trials]) or "nothing"


def _describe_best(trial: MadeTrial) -> str:
    return f"{trial.key} {trial.metric} {format_metric(trial.metric, trial.score)}"


def _trial_columns(trials: Sequence[MadeTrial]) -> dict[str, Callable[[MadeTrial], str]]:
    """Return the columns of trials: the settings that differ between them, the metric, and where to find more."""
    known = [trial.settings for trial in trials if trial.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    varying = [name for name in names if len({str(settings.get(name)) for settings in known}) > 1]
    shown = [*_ALWAYS, *(name for name in varying if name not in _ALWAYS)]

    def setting(name: str) -> Callable[[MadeTrial], str]:
        return lambda trial: str(trial.settings.get(name, ""))

    return {
        **{name: setting(name) for name in shown},
        "best": lambda trial: f"{trial.metric} {format_metric(trial.metric, trial.score)}",
        "epoch": lambda trial: f"{trial.best_epoch} of {trial.num_epochs}",
        "parameters": lambda trial: format_magnitude(trial.num_parameters),
        "MLflow run": lambda trial: trial.run_id or show_urls(trial.error),
    }


def _table(
    title: str, rows: Sequence[Any], columns: dict[str, Callable[[Any], str]], current: frozenset[str]
) -> list[str]:
    """Return a table with key and state in front, as a list of one text; empty if there are no rows."""
    if not rows:
        return []
    mark = {row.key: "* " if row.key in current else "  " * bool(current) for row in rows}
    head = [f"{'  ' * bool(current)}{title}", "state", *columns]
    lines = [head, *([mark[row.key] + row.key, row.state, *(read(row) for read in columns.values())] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return ["\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)]
