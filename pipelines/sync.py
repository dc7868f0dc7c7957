"""Send what waits in the journal to the tracking server: `vidflow sync CONFIG.yaml`."""

import logging
from dataclasses import replace

from vidflow.config.fingerprints import tracking_settings
from vidflow.config.tracking_uri import store_uri, without_credentials
from vidflow.errors import VidflowError
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import address_of, peek_manifest, publish_manifest
from vidflow.store.journal import JOURNAL, count_waiting
from vidflow.store.layout import list_folders
from vidflow.tracking import Tracker, name_store

log = logging.getLogger("vidflow")
_SWEEPS = "sweeps"


def main(experiment: Experiment) -> None:
    """Send the records under the root that wait for the config's store, and add the runs to the manifests of sweeps.

    Raises:
        VidflowError: If records still wait, as the store does not take them.
    """
    config, root = experiment.config, experiment.root
    uri, name = store_uri(config), config.tracking.experiment
    problem = ""
    with experiment.exclusive():
        before = _count(experiment)
        for key in dict.fromkeys([*before, *_sweeps_without_run(experiment)]):
            with Tracker(root, key, uri=uri, experiment=name) as tracker:
                _add_runs(experiment, tracker)
            if problem := tracker.problem:
                break
        after = sum(_count(experiment).values())
        experiment.published("sweep")
    if problem:
        raise VidflowError(
            f"{after} records of runs wait in {root / JOURNAL}, as {without_credentials(uri)} does not store them "
            f"({problem}); nothing else is missing; the same command or `{experiment.command('sync')}` sends them later"
        )
    log.info("sync: %d records -> %s", sum(before.values()), without_credentials(uri))


def send_rest(experiment: Experiment) -> None:
    """At the end of a command, send what still waits.

    Raises:
        VidflowError: If it still waits, unless `tracking.when_away` asks for that.
    """
    try:
        main(experiment)
    except VidflowError as error:
        if experiment.config.tracking.when_away != "journal":
            raise
        log.warning("%s", error)


def _count(experiment: Experiment) -> dict[str, int]:
    """Return journal -> number of records that wait for the config's store; log those that wait for another."""
    config = experiment.config
    ours = name_store(store_uri(config), config.tracking.experiment, experiment.root)
    counts = {}
    for (key, store), number in count_waiting(experiment.root).items():
        if store == ours:
            counts[key] = number
        else:
            log.warning("sync: %d records wait for another store and experiment, %s", number, store)
    return counts


def _sweeps_without_run(experiment: Experiment) -> list[str]:
    """Return the keys of the sweeps that were finished while the config's store was away."""
    tracking = tracking_settings(experiment.config.tracking)
    keys = []
    for folder in list_folders(experiment.root / _SWEEPS):
        manifest = peek_manifest(folder)
        if manifest is not None and manifest.settings.get("tracking") == tracking and not manifest.details["run_id"]:
            keys.append(folder.name)
    return keys


def _add_runs(experiment: Experiment, tracker: Tracker) -> None:
    """Add the runs to the manifest of a finished sweep that does not name them."""
    ids = tracker.ids()
    directory = experiment.root / _SWEEPS / tracker.sweep
    manifest = peek_manifest(directory)
    if ids.run_id and manifest is not None and not manifest.details["run_id"]:
        details = {**manifest.details, **ids.details(manifest.details["trials"])}
        publish_manifest(address_of(directory, manifest), replace(manifest, details=details))


__all__ = ["main", "send_rest"]
