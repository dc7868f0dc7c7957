"""Where a stage's artifacts are: the folder is named after the settings that decide them, never passed by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidflow.config.fingerprints import fingerprint, trial_settings
from vidflow.config.roots import root_path
from vidflow.config.schema import Config, Trial
from vidflow.config.search import objective_of
from vidflow.store.initial_weights import read_initial


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Folder of a stage's artifacts, and the settings that name the folder.

    Attributes:
        directory: The folder.
        settings: The settings that its name is the hash of.
        edition: Name of the set of clips that are left out for now, although the settings include them; empty for none.
    """

    directory: Path
    settings: dict[str, Any]
    edition: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of the settings."""
        return fingerprint(self.settings)

    @property
    def identity(self) -> str:
        """Name of the content; with an edition it differs from the name of the complete content."""
        return fingerprint([self.fingerprint, self.edition]) if self.edition else self.fingerprint


def locate_trial(config: Config, trial: Trial, features: Address) -> Address:
    """Return the address of a trial on these features.

    Raises:
        VidflowError: If the weights that it starts from are not there.
    """
    objective = objective_of(config.trials, trial.task)
    initial = None if trial.init_from is None else read_initial(config, trial.init_from).sha256
    settings = trial_settings(config, trial, features.identity, *objective, initial=initial)
    return Address(directory=root_path(config) / "trials" / fingerprint(settings), settings=settings)
