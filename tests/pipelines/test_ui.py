"""`vidflow ui`, as a user meets it: what it prints, and what a real browser shows at the address."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow_server import wait_for
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")


def test_a_store_without_runs_is_refused_with_what_to_do(tiny, here):
    done = here("ui", tiny)
    assert done.returncode == 2
    assert re.search(r"mlflow\.db holds no runs of experiment 'vidflow' yet; make them with: vidflow run ", done.stderr)
    assert not list(tiny.parent.rglob("mlflow.db"))


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(tiny, here, port):
    assert here("ui", tiny, "--port", port).returncode == 2


@pytest.fixture
def started(tmp_path: Path, finished_experiment):
    """The command on a finished experiment, at a busy port; what it printed."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        command = [sys.executable, "-m", "pipelines.cli", "ui", str(finished_experiment.config), "--port", str(port)]
        with (tmp_path / "said.txt").open("w") as said:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            while "MLflow UI" not in (tmp_path / "said.txt").read_text():
                assert process.poll() is None
                time.sleep(0.2)
            text = (tmp_path / "said.txt").read_text()
            page = re.search(r"http://\S+", text).group()
            wait_for(page.partition("#")[0] + "health", process)
            yield port, text, page
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def show(page: str, folder: Path, name: str, *, height: int = 900) -> tuple[str, np.ndarray]:
    """Return the elements and the picture of a page in a browser that has never been started before."""
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path; apt-get install chromium")
    common = [binary, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    common += ["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"]
    common += [f"--window-size=1600,{height}", "--virtual-time-budget=60000"]
    picture = Path(os.environ.get("SCREENSHOTS", folder), f"{name}.png")
    shown = subprocess.run([*common, "--dump-dom", page], capture_output=True, text=True, timeout=240, check=True)
    subprocess.run([*common, f"--screenshot={picture}", page], capture_output=True, timeout=240, check=True)
    return shown.stdout, np.asarray(Image.open(picture).convert("RGB"))


@pytest.mark.slow
def test_a_browser_shows_the_runs_with_metric_core_features_and_seed(started, finished_experiment, tmp_path):
    busy, said, page = started
    assert f"port {busy} is busy, so the UI is at port " in said
    assert re.search(r"/#/experiments/1/runs\?workflowType=machine_learning", page)
    client = mlflow.MlflowClient(f"sqlite:///{finished_experiment.root / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    child = next(run for run in runs if run.data.params.get("core") == "gru")

    shown, _ = show(page, tmp_path, "runs")
    for word in ("core=gru", "core=mean", "best/val/top1", "features", "seed", ">3</strong> matching runs"):
        assert word in shown
    charts, picture = show(f"{page}&compareRunsMode=CHART", tmp_path, "charts", height=1400)
    assert "Parallel Coordinates" in charts
    assert "baseline" not in charts
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200  # lines and bars are drawn

    base = page.partition("?")[0]
    shown, _ = show(f"{base}/{parent.info.run_id}?workflowType=machine_learning", tmp_path, "parent", height=1500)
    for word in ("Best trial (classification)", "report.html", "Finished", "best/val/top1", "train 40, val 20"):
        assert word in shown
    shown, _ = show(f"{base}/{child.info.run_id}?workflowType=machine_learning", tmp_path, "child", height=1500)
    for word in ("Finished", "system/cpu_utilization_percentage", "val/top1", "baseline/val/top1", "Parent run"):
        assert word in shown
    (model,) = child.outputs.model_outputs
    place = base.removesuffix("/runs")
    shown, _ = show(f"{place}/models/{model.model_id}?workflowType=machine_learning", tmp_path, "model")
    for word in ("Ready", "core=gru", "best/val/top1"):
        assert word in shown
