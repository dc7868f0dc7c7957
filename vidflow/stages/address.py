"""Where a stage's artifacts lie: named by the settings that decide them, never passed by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidflow.config.fingerprints import fingerprint, trial_settings
from vidflow.config.schema import Config, Trial
from vidflow.config.search import objective_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a stage's artifacts lie, and the settings that name the place.

    Attributes:
        directory: The place.
        settings: What names it.
        edition: Names the clips that are left out for now, though the settings would have them in; empty for none.
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
        """Name of the content: what is made from an edition never passes for what is made from the whole."""
        return fingerprint([self.fingerprint, self.edition]) if self.edition else self.fingerprint


def locate_trial(config: Config, trial: Trial, features: Address) -> Address:
    """Return where a trial on these features lies."""
    settings = trial_settings(trial, features.identity, *objective_of(config.trials, trial.task))
    return Address(directory=Path(config.root) / "trials" / fingerprint(settings), settings=settings)
