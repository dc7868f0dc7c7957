"""Open the MLflow UI on the experiment's runs: `vidflow ui CONFIG.yaml`."""

import os
import socket

from vidflow.config.tracking_uri import keep_credentials, store_uri, without_credentials
from vidflow.errors import ConfigError
from vidflow.stages.experiment import Experiment
from vidflow.tracking import find_page, ui_command

HOST = "127.0.0.1"


def main(experiment: Experiment, port: int = 5000) -> None:
    """Replace this process with the MLflow server, at 127.0.0.1; if a server stores the runs, only name the page.

    Args:
        experiment: The experiment.
        port: Port of the server; another one is taken if it is busy.

    Raises:
        ConfigError: If there are no runs.
    """
    config = experiment.config
    uri = keep_credentials(store_uri(config))
    is_local = uri.startswith("sqlite:")
    taken = _free_port(port) if is_local else port
    page = find_page(uri, config.tracking.experiment, f"http://{HOST}:{taken}" if is_local else uri.rstrip("/"))
    if page is None:
        raise ConfigError(
            f"{without_credentials(uri)} holds no runs of experiment {config.tracking.experiment!r} yet; make them "
            f"with: {experiment.command('run')}"
        )
    if not is_local:
        print(f"MLflow UI: {page}")
        return
    if taken != port and port:
        print(f"port {port} is busy, so the UI is at port {taken}", flush=True)
    print(f"MLflow UI: {page}  (stop with Ctrl-C)", flush=True)
    command = ui_command(uri, HOST, taken)
    os.execv(command[0], command)  # noqa: S606 - a list, no shell


def _free_port(wanted: int) -> int:
    """Return a port that is free now: the wanted one, or else any."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError(f"--port: got {wanted}, which is busy, and no other port of {HOST} is free")
