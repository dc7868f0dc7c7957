"""What a user names on the command line or in a notebook: a config with its settings, or a folder."""

from collections.abc import Sequence
from pathlib import Path

from vidflow.config.load import load_config
from vidflow.errors import ConfigError
from vidflow.objects import to_path
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import peek_manifest
from vidflow.stages.inventory import is_root
from vidflow.store.layout import list_folders

_CONFIGS = (".yaml", ".yml")
RUNS = Path("runs")
"""Where experiments are if none is named."""


def is_config(place: str | Path) -> bool:
    """Return whether a word names a config."""
    return Path(place).suffix in _CONFIGS


def open_experiment(words: Sequence[str]) -> Experiment:
    """Return the experiment of some files and `key=value`.

    Raises:
        ConfigError: With every problem in them.
    """
    files = [Path(word) for word in words if "=" not in word]
    return Experiment(load_config(files, [word for word in words if "=" in word]), words)


def find_roots(places: Sequence[str]) -> tuple[list[Path], Experiment | None]:
    """Return the roots that the words of a command line name, and the experiment if they name a config.

    Args:
        places: Roots, folders of roots, or the files and `key=value` of one config; none: the roots in `runs`.

    Raises:
        ConfigError: If a place is no experiment, or a config has problems.
    """
    if not places:
        return [folder for folder in list_folders(RUNS) if is_root(folder)], None
    if any(is_config(place) for place in places):
        experiment = open_experiment(places)
        if not is_root(experiment.root):
            raise ConfigError(f"{experiment.root}: nothing here yet; make it with `{experiment.command('run')}`")
        return [experiment.root], experiment
    return [root for place in places for root in _roots_in(to_path(place))], None


def _roots_in(folder: Path) -> list[Path]:
    """Return the folder, or the roots directly in it."""
    roots = [folder] if is_root(folder) else [each for each in list_folders(folder) if is_root(each)]
    if not roots:
        raise ConfigError(f"{folder}: no experiment here; wanted its root, such as runs/demo, or its config")
    return roots


def find_features(source: str | Path, *settings: str, name: str | None = None) -> Path:
    """Return the folder of a finished feature set.

    Args:
        source: The folder, or a config.
        settings: More files and `key=value`, if `source` is a config.
        name: Feature set of the config; None if it has only one.

    Raises:
        ConfigError: If the config has problems or no such feature set, or several and none is named.
        VidflowError: If the feature set is not finished.
    """
    if not is_config(source):
        return _check_folder(to_path(source), settings, name)
    experiment = open_experiment([str(source), *settings])
    names = list(experiment.config.features)
    if name not in names if name is not None else len(names) > 1:
        raise ConfigError(f"{source}: got {name or 'no name of a feature set'}, wanted one of {', '.join(names)}")
    return experiment.finished_features(name or names[0]).directory


def _check_folder(folder: Path, settings: Sequence[str], name: str | None) -> Path:
    if settings or name is not None:
        given = " ".join([*settings, *([] if name is None else [name])])
        raise ConfigError(f"{folder}: got {given} beside a folder; these go with a config (.yaml)")
    manifest = peek_manifest(folder)
    if manifest is None or not manifest.stage.startswith("extract"):
        raise ConfigError(f"{folder}: not the folder of a feature set; `vidflow ls` lists them")
    return folder
