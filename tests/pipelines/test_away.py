"""A tracking server that is away when a command starts, in the middle, at the end; and one that is there."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import StoreServer, free_port, postgres
from tiny_experiment import TINY

from pipelines.initial_weights import find_unfit_weights
from vidflow.config.load import draft_config
from vidflow.stages.experiment import Experiment
from vidflow.stages.trained import read_sweeps, read_trial
from vidflow.store.journal import Journal, count_waiting, read_record

SYNTHETIC = Path(__file__).with_name("synthetic_sweep.py")


def test_records_are_read_in_the_order_in_which_several_processes_wrote_them(tmp_path):
    for process in range(2):
        journal = Journal(tmp_path, "feed", "http://host demo")
        for number in range(2):
            journal.append({"b": process, "a": number})
    left = Journal(tmp_path, "feed", "http://host demo")
    assert [list(each.items()) for each in left.read_left()] == [
        [("b", process), ("a", number)] for process in range(2) for number in range(2)
    ]
    assert count_waiting(tmp_path) == {("feed", "http://host demo"): 4}


def test_a_damaged_record_is_set_aside_and_the_others_are_kept(tmp_path):
    journal = Journal(tmp_path, "feed", "store")
    cut, whole = [journal.append({"number": number}) for number in range(2)]
    cut.write_text(cut.read_text()[:-9])
    assert read_record(cut) is None
    assert read_record(whole) == {"number": 1}
    assert cut.with_name(f"{cut.name}.damaged").exists()


def test_a_server_that_is_away_at_the_start_is_one_sentence_unless_runs_may_wait(here, tiny, caplog):
    silent = f"tracking.uri=http://127.0.0.1:{free_port()}"
    here("run", tiny, silent)  # imports, which take long on a machine that does much else
    for command in ("run", "sync"):
        started = time.monotonic()
        done = here(command, tiny, silent)
        assert done.returncode == 2
        assert time.monotonic() - started < 10
        (said,) = [line for line in done.stderr.splitlines() if "tracking.uri" in line]
        assert "Connection refused" in said
        assert "start the server, name another store, or set tracking.when_away=journal" in said
    assert here("run", tiny, silent, "tracking.when_away=journal", "root=/proc/none").returncode == 2
    assert "runs wait under root" in caplog.text


def test_where_runs_are_stored_decides_the_key_of_a_sweep_and_what_happens_when_it_is_away_does_not(
    finished_experiment,
):
    def key(*words: str) -> str:
        draft = draft_config([finished_experiment.config], list(words))
        return Experiment(draft.config).sweep.fingerprint

    assert key("tracking.when_away=journal") == key()
    assert key("tracking.uri=http://host") != key()
    assert (finished_experiment.root / "sweeps" / key() / "manifest.json").exists()


@pytest.mark.slow
def test_init_from_names_a_run_of_the_same_root_while_the_server_is_away(copied_config, finished_experiment):
    (sweep,) = read_sweeps(finished_experiment.root)
    runs = {
        read_trial(finished_experiment.root / "trials" / key).settings["core"]: sweep.runs[key] for key in sweep.keys
    }
    away = [f"tracking.uri=http://127.0.0.1:{free_port()}", "trials.axes.core=[gru]"]

    def problems(run: str) -> list[str]:
        return list(find_unfit_weights(draft_config([copied_config], [*away, f"trials.trial.init_from={run}"]).config))

    assert problems(runs["gru"]) == []
    (unknown,) = problems("a" * 32)
    assert unknown.startswith(f"trials.trial.init_from: run {'a' * 32}: cannot download ")
    assert "Connection refused; a trial's folder, or its best.safetensors, needs no store" in unknown


@dataclass
class Away:
    """An experiment with features, and a server that tests start and kill.

    Attributes:
        config: Its settings, which name the server.
        root: Its root.
        server: The server.
    """

    config: Path
    root: Path
    server: StoreServer

    def runs(self) -> list[Run]:
        client = MlflowClient(self.server.uri)
        found = client.get_experiment_by_name("vidflow")
        return list(client.search_runs([found.experiment_id], max_results=1000)) if found is not None else []

    def waiting(self) -> int:
        return sum(count_waiting(self.root).values())

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "pipelines.cli", str(words[0]), str(self.config), *map(str, words[1:])]

    def synthetic(self, *words: object) -> list[str]:
        return [sys.executable, str(SYNTHETIC), str(self.config), *map(str, words)]


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def away(request, tmp_path_factory, vidflow) -> Iterator[Away]:
    folder = tmp_path_factory.mktemp("away")
    with contextlib.ExitStack() as opened:
        is_postgres = request.param == "postgres"
        backend = opened.enter_context(postgres()) if is_postgres else f"sqlite:///{folder}/server.db"
        server = StoreServer(backend, folder)
        config, root = folder / "tiny.yaml", folder / "root"
        config.write_text(TINY.format(root=root) + f"tracking: {{uri: '{server.uri}'}}\n")
        server.start()
        opened.callback(server.kill)
        for stage in ("synth", "shard", "extract", "sweep"):
            done = vidflow(stage, config)
            assert done.returncode == 0, done.stderr
        yield Away(config, root, server)


def trials_of(away: Away, title: str) -> dict[str, Run]:
    """The runs below the sweep with a title, by key; no key twice."""
    found = away.runs()
    (parent,) = [run for run in found if run.info.run_name == title]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    keys = [run.data.tags["vidflow.trial_key"] for run in children]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, children, strict=True))


def check_complete(away: Away, title: str, num_trials: int, num_epochs: int) -> None:
    client, trials = MlflowClient(away.server.uri), trials_of(away, title)
    assert len(trials) == num_trials
    assert {run.info.status for run in trials.values()} == {"FINISHED"}
    for run in trials.values():
        for metric in ("val/top1", "system/epoch_seconds"):
            history = client.get_metric_history(run.info.run_id, metric)
            assert sorted(point.step for point in history) == list(range(1, num_epochs + 1))
        assert len(run.outputs.model_outputs) == 1
        assert run.data.params["core"]
    assert away.waiting() == 0


@pytest.mark.slow
def test_a_trial_costs_twelve_calls_and_one_for_each_epoch(away):
    before = away.server.calls()
    done = subprocess.run(away.synthetic(8, 3, 1, "report.title=calls"), capture_output=True, text=True, check=True)
    calls = away.server.calls() - before
    of_sweep = [name for name in calls if re.search(r"search|experiment|config.yaml", name)]
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == 8
    own = sum(number for name, number in calls.items() if name not in of_sweep)
    assert own <= 8 * (12 + 3) + 5, calls  # of the sweep's run: its start, params, data, tags and end
    assert sum(calls[name] for name in of_sweep) <= 6, calls
    check_complete(away, "calls", 8, 3)


@pytest.mark.slow
def test_killed_servers_and_killed_drivers_lose_no_record_and_leave_none_twice(away):
    command = away.synthetic(16, 6, 1.5, "report.title=killed")

    def start_and_kill(seconds: float) -> None:
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "prepared\n"
        time.sleep(seconds)
        driver.kill()
        driver.wait()

    start_and_kill(4)
    timer = threading.Timer(6, away.server.kill)
    timer.start()
    start_and_kill(9)
    timer.join()
    assert away.waiting() > 0
    start_and_kill(5)
    away.server.start()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == 16
    check_complete(away, "killed", 16, 6)


@pytest.mark.slow
def test_a_server_that_never_comes_back_stalls_nothing_and_sync_sends_everything(away, vidflow):
    words = ["report.title=alone"]
    away.server.kill()
    try:
        done = subprocess.run(away.synthetic(8, 4, 1, *words), capture_output=True, text=True, check=True)
    finally:
        away.server.start()
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["runs"] == 0
    assert measured["longest_call"] < 5  # on a machine that does much else; a call that waits for MLflow takes minutes
    assert measured["wall"] < 60
    assert away.waiting() >= 8 * (1 + 4 + 1)
    done = vidflow("sync", away.config, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"sync: \d+ records -> http", done.stderr)
    check_complete(away, "alone", 8, 4)
    assert vidflow("sync", away.config, *words).stderr.rstrip().endswith(f"sync: 0 records -> {away.server.uri}")


@pytest.mark.slow
def test_a_run_without_a_server_writes_its_report_and_its_runs_follow(away, vidflow):
    words = ["trials.axes={core: [mean], seed: [1, 2]}", "report.title=offline"]
    away.server.kill()
    try:
        refused = vidflow("run", away.config, *words)
        done = vidflow("run", away.config, *words, "tracking.when_away=journal")
        listed = vidflow("ls", away.root)
    finally:
        away.server.start()
    assert refused.returncode == 2
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"\d+ records of runs wait in \S+journal, as http", done.stderr.splitlines()[-1])
    assert "vidflow sync" in done.stderr.splitlines()[-1]
    page = Path(re.search(r"report: (\S+report\.html)", done.stderr)[1])
    assert page.exists()
    assert listed.returncode == 0
    done = vidflow("run", away.config, *words)
    assert done.returncode == 0, done.stderr
    assert away.waiting() == 0
    check_complete(away, "offline", 2, 2)
    manifests = [json.loads(path.read_text())["details"] for path in away.root.glob("sweeps/*/manifest.json")]
    assert all(details["run_id"] and len(details["runs"]) == len(details["trials"]) for details in manifests)


@pytest.mark.slow
def test_a_server_that_dies_during_a_sweep_is_said_once_and_the_same_command_ends_well(away, vidflow):
    words = ["trials.axes={core: [mean, gru], seed: [3, 4]}", "trials.trial.epochs=20", "report.title=middle"]
    driver = subprocess.Popen(away.command("run", *words), stderr=subprocess.PIPE, text=True)
    try:
        while not [run for run in away.runs() if run.info.run_name == "core=mean seed=3"]:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.2)
        away.server.kill()
        said = driver.communicate(timeout=600)[1]
    finally:
        away.server.kill()
        away.server.start()
    assert driver.returncode == 1
    assert "Traceback" not in said
    assert said.count("does not store runs") <= 3  # of the sweep, the report and the end
    assert "report: " in said
    assert re.match(r"vidflow: \d+ records of runs wait in \S+journal, as http", said.splitlines()[-1])
    done = vidflow("run", away.config, *words)
    assert done.returncode == 0, done.stderr
    check_complete(away, "middle", 4, 20)


@pytest.mark.slow
def test_the_runs_of_an_interrupted_sweep_end_as_killed_and_go_on(away, vidflow):
    words = ["trials.axes={core: [mean], seed: [5, 6]}", "trials.trial.epochs=60", "report.title=interrupted"]
    driver = subprocess.Popen(away.command("sweep", *words), stderr=subprocess.PIPE, text=True)
    while not [
        run for run in away.runs() if "system/epoch_seconds" in run.data.metrics and "seed=5" in run.info.run_name
    ]:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.2)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=100)
    assert "RUNNING" not in {run.info.status for run in away.runs()}
    done = vidflow("sweep", away.config, *words)
    assert done.returncode == 0, done.stderr
    check_complete(away, "interrupted", 2, 60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_trials_of_twenty_epochs_wait_for_the_server_less_than_a_twentieth(away):
    done = subprocess.run(away.synthetic(200, 20, 1, "report.title=many"), capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured)
    assert measured["runs"] == 200
    assert measured["before"] + measured["after"] < 0.05 * measured["wall"]
    assert measured["longest_call"] < 5  # on a machine that does much else; a call that waits for MLflow takes minutes
    check_complete(away, "many", 200, 20)
