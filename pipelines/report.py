"""Write one HTML page about the sweep: `vidflow report CONFIG.yaml`."""

import time
from pathlib import Path

from pipelines.entry import run_stage
from pipelines.ray_pool import log
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import VidflowError
from vidflow.records import StageManifest, TrialResult
from vidflow.report.gather import gather
from vidflow.report.page import render_page
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import manifest_seal, publish_manifest
from vidflow.store.layout import list_file, publish
from vidflow.tracking import Tracker, explain_failures
from vidflow.training.snapshot import load_result

PAGE = "report.html"


def main(experiment: Experiment) -> None:
    """Write the page to disk and to the parent run."""
    started = time.monotonic()
    config = experiment.config
    with experiment.exclusive():
        experiment.check_features()
        sweep = experiment.finished(experiment.sweep)
        results = [_load(experiment.root / "trials" / key) for key in sweep.details["trials"]]
        page = render_page(gather(experiment, results))
        address = experiment.report
        with publish(address.directory / PAGE) as aside:
            aside.write_text(page)
        uri = store_uri(config)
        with explain_failures(uri):
            run_id = sweep.details["run_id"]
            Tracker(uri, config.tracking.experiment).log_file(run_id, address.directory / PAGE, PAGE)
        listed = list_file(address.directory / PAGE)
        seconds = time.monotonic() - started
        manifest = StageManifest(
            stage="report",
            fingerprint=address.fingerprint,
            num_files=1,
            num_bytes=listed["num_bytes"],
            worker_seconds=seconds,  # this process is its only worker
            wall_seconds=seconds,
            files=[listed],
            details={"sweep": manifest_seal(sweep)},
        )
        publish_manifest(address, manifest)
        experiment.published("report")
    log.info(
        "report: %s, %.1f MB in %.1f s; runs: vidflow ui CONFIG, then http://127.0.0.1:5000",
        address.directory / PAGE,
        len(page) / 1e6,
        seconds,
    )


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
