"""Open the MLflow UI on the experiment's store: `vidflow ui CONFIG.yaml`."""

import os

from vidflow.config.tracking_uri import store_uri
from vidflow.stages.experiment import Experiment
from vidflow.tracking import ui_command, ui_page


def main(experiment: Experiment) -> None:
    """Replace this process with the MLflow server, at 127.0.0.1."""
    command = ui_command(store_uri(experiment.config))
    print(f"MLflow UI: {ui_page()}  (stop with Ctrl-C)", flush=True)
    os.execv(command[0], command)  # noqa: S606 - a list, no shell
