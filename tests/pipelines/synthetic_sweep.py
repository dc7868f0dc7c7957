"""A sweep whose trials only sleep, through the real recorder: `python synthetic_sweep.py CONFIG TRIALS EPOCHS SECONDS`.

Tune's loop is one thread that is told of every start, epoch and end when it is due; eight trials run at a time. Trials
that are over are skipped, and others start again, as after a kill. Prints what was measured as JSON.
"""

import heapq
import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pipelines.sweep_runs import SweepRuns
from pipelines.trial_recorder import TrialRecorder
from vidflow.config.load import draft_config
from vidflow.config.schema import Trial
from vidflow.records import EpochResult
from vidflow.stages.experiment import Experiment
from vidflow.training.snapshot import (
    PREDICTIONS,
    Snapshot,
    TrialIdentity,
    load_result,
    read_tensors,
    write_result,
    write_snapshot,
)

AT_A_TIME = 8
WEIGHTS = 500_000  # floats, as many as a small core has


def history_of(trial: Trial, num_epochs: int) -> list[EpochResult]:
    names = ["train/loss", "train/top1", "train/grad_norm", "val/loss", "val/top1", "val/top5", "system/gpu_mib"]
    return [
        EpochResult(epoch=n, metrics=dict.fromkeys(names, trial.seed + n / 100), seconds=1.0, is_best=True)
        for n in range(1, num_epochs + 1)
    ]


def prepare(experiment: Experiment, trials: list[Trial], num_epochs: int) -> None:
    """Write what each trial leaves, aside, so that an end is a renaming."""
    example = next(experiment.root.glob("trials/*/best.safetensors")).parent
    identity = TrialIdentity(**read_tensors(example / "best.safetensors")[1]["identity"])
    predictions, _ = read_tensors(example / PREDICTIONS)
    for trial in trials:
        address = experiment.trial(trial)
        aside = experiment.root / "prepared" / address.fingerprint
        if address.directory.exists() or aside.exists():
            continue
        own = replace(identity, key=address.fingerprint, settings=asdict(trial))
        weights = {"w": torch.full((WEIGHTS,), float(trial.seed))}
        history = tuple(history_of(trial, num_epochs))
        state = Snapshot(identity=own, history=history, model=weights, optimizer={}, predictions=predictions)
        write_snapshot(aside, state)
        write_result(aside, "completed")


def main(config: str, num_trials: int, num_epochs: int, seconds: float, *words: str) -> dict[str, object]:
    axes = f"trials.axes={{seed: {list(range(num_trials))}}}"
    draft = draft_config([Path(config)], [axes, f"trials.trial.epochs={num_epochs}", *words])
    assert not draft.problems, draft.problems
    experiment = Experiment(draft.config, [config])
    trials = [replace(draft.config.trials.trial, seed=seed) for seed in range(num_trials)]
    prepare(experiment, trials, num_epochs)
    print("prepared", flush=True)
    started, blocked = time.monotonic(), [0.0]

    def call(write, *arguments) -> None:
        before = time.monotonic()
        write(*arguments)
        blocked.append(time.monotonic() - before)

    with SweepRuns(experiment, {}) as runs:
        runs.open(num_trials)
        with TrialRecorder(runs, lambda key: None) as recorder:
            over = [trial for trial in trials if load_result(experiment.trial(trial).directory) is not None]
            for trial in over:
                recorder.end(trial, experiment.trial(trial))
            recorder.drain()
            opened = time.monotonic()
            waiting = [trial for trial in trials if trial not in over]
            events = [(opened + 0.1 * n, n, 0, trial) for n, trial in enumerate(waiting[:AT_A_TIME])]
            waiting, number = waiting[AT_A_TIME:], len(events)
            while events:
                due, _, epoch, trial = heapq.heappop(events)
                time.sleep(max(0.0, due - time.monotonic()))
                address = experiment.trial(trial)
                number += 1
                if epoch == 0:
                    call(recorder.start, trial, address)
                else:
                    call(recorder.log_epoch, address, history_of(trial, num_epochs)[epoch - 1])
                if epoch < num_epochs:
                    heapq.heappush(events, (due + seconds, number, epoch + 1, trial))
                    continue
                shutil.move(experiment.root / "prepared" / address.fingerprint, address.directory)
                call(recorder.end, trial, address)
                if waiting:
                    heapq.heappush(events, (due, number, 0, waiting.pop(0)))
            trained = time.monotonic()
            recorder.drain()
        runs.finish({}, is_complete=True)
        ids = runs.ids()
    ended = time.monotonic()
    return {
        "wall": ended - started,
        "before": opened - started,
        "after": ended - trained,
        "longest_call": max(blocked),
        "runs": len(ids.trials),
        "cpu": time.process_time(),
    }


if __name__ == "__main__":
    path, trials, epochs, seconds, *words = sys.argv[1:]
    print(json.dumps(main(path, int(trials), int(epochs), float(seconds), *words)), flush=True)
