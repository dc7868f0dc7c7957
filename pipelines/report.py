"""Write one HTML page about the sweep: `vidflow report CONFIG.yaml`."""

import time
from pathlib import Path

from pipelines.entry import run_stage
from pipelines.progress import finished_features, finished_manifest, finished_shards
from pipelines.ray_pool import log
from vidflow.config.schema import Config
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import VidflowError
from vidflow.records import TrialResult
from vidflow.report.gather import gather
from vidflow.report.page import render_page
from vidflow.stages.locate import locate_report, locate_sweep, root_of
from vidflow.store.layout import STAGE_MANIFEST, exclusive, list_file, publish, publish_json, seal_of
from vidflow.tracking import Tracker, explain_failures
from vidflow.training.snapshot import load_result

PAGE = "report.html"


def main(config: Config) -> None:
    """Write the page to disk and to the parent run."""
    started = time.monotonic()
    with exclusive(root_of(config)):
        work = finished_shards(config)
        features = finished_features(config, work)
        sweep = locate_sweep(config, features)
        manifest = finished_manifest(sweep)
        results = [_load(root_of(config) / "trials" / key) for key in manifest["trials"]]
        page = render_page(gather(config, work, features, sweep, results, manifest.get("baselines", {})))
        address = locate_report(config, sweep)
        with publish(address.directory / PAGE) as aside:
            aside.write_text(page)
        uri = store_uri(config)
        with explain_failures(uri):
            Tracker(uri, config.tracking.experiment).log_file(manifest["run_id"], address.directory / PAGE, PAGE)
        made = {"stage": "report", "fingerprint": address.fingerprint, "sweep": seal_of(manifest)}
        publish_json(address.directory / STAGE_MANIFEST, {**made, "files": [list_file(address.directory / PAGE)]})
    log.info(
        "report: %s, %.1f MB in %.1f s; runs: vidflow ui CONFIG, then http://127.0.0.1:5000",
        address.directory / PAGE,
        len(page) / 1e6,
        time.monotonic() - started,
    )


def _load(directory: Path) -> TrialResult:
    """Return what became of a trial of the finished sweep.

    Raises:
        VidflowError: If a file of it is gone or damaged.
    """
    result = load_result(directory)
    if result is None:
        raise VidflowError(f"{directory}: a file of this trial is gone or damaged; `vidflow sweep` trains it again")
    return result


if __name__ == "__main__":
    run_stage("report", main)
