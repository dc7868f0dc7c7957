"""Write one HTML page about the sweep, and its trials as CSV and LaTeX: `vidflow report CONFIG.yaml`."""

import time
from pathlib import Path

from pipelines.display import Waiting, shown
from pipelines.entry import run_stage
from pipelines.ray_pool import log
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import VidflowError
from vidflow.records import StageManifest, TrialResult
from vidflow.report.exports import CSV, TEX, trials_csv, trials_tex
from vidflow.report.gather import gather
from vidflow.report.page import render_page
from vidflow.report.sweeps import PAGE
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import manifest_seal, publish_manifest
from vidflow.store.layout import list_file, publish
from vidflow.tracking import Tracker
from vidflow.training.snapshot import load_result


def main(experiment: Experiment) -> None:
    """Write the page to disk and to the parent run."""
    started = time.monotonic()
    config = experiment.config
    with experiment.exclusive(), shown(Waiting("report: writing")):
        experiment.check_features()
        sweep = experiment.finished(experiment.sweep)
        results = [_load(experiment.root / "trials" / key) for key in sweep.details["trials"]]
        data, address = gather(experiment, results), experiment.report
        runs = sweep.details.get("runs", {})
        written = {PAGE: render_page(data), CSV: trials_csv(data.sections, runs), TEX: trials_tex(data.sections)}
        for name, text in written.items():
            with publish(address.directory / name) as aside:
                aside.write_text(text, encoding="utf-8")
        key = experiment.sweep.fingerprint
        with Tracker(experiment.root, key, uri=store_uri(config), experiment=config.tracking.experiment) as tracker:
            for name in written:
                tracker.log_file(tracker.sweep, address.directory / name, name)
        files = [list_file(address.directory / name) for name in written]
        seconds = time.monotonic() - started
        manifest = StageManifest(
            stage="report",
            fingerprint=address.fingerprint,
            num_files=len(files),
            num_bytes=sum(file["num_bytes"] for file in files),
            worker_seconds=seconds,  # this process is its only worker
            wall_seconds=seconds,
            files=files,
            details={"sweep": manifest_seal(sweep)},
        )
        publish_manifest(address, manifest)
        experiment.published("report")
    page = address.directory / PAGE
    log.info("report: %s, %.1f MB in %.1f s", page, page.stat().st_size / 1e6, seconds)
    for section in data.sections:
        if section.predict:
            log.info("best trial of %s: %s", section.task.replace("_", " "), section.predict)
    log.info("all runs: %s", data.ui)


def _load(directory: Path) -> TrialResult:
    """Return the result of a trial of the finished sweep.

    Raises:
        VidflowError: If one of its files is missing or damaged.
    """
    result = load_result(directory)
    if result is None:
        raise VidflowError(f"{directory}: a file of this trial is gone or damaged; `vidflow sweep` trains it again")
    return result


if __name__ == "__main__":
    run_stage("report", main)
