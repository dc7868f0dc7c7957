"""ASHA's decisions, as they are kept."""

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from pipelines.tuning import StoppingScheduler


def test_a_trial_is_noted_as_stopped_before_tune_hears_of_it(tmp_path):
    noted = []
    scheduler = StoppingScheduler(
        lambda trial, epoch: noted.append((trial.trial_id, epoch)),
        time_attr="epoch",
        metric="val/top1",
        mode="max",
        grace_period=2,
        max_t=8,
    )
    trials = [Trial("any", trial_id=name, stub=True, storage=None) for name in ("good", "bad")]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    decisions = [
        scheduler.on_trial_result(None, trial, {"epoch": epoch, "val/top1": score})
        for epoch in (1, 2)
        for trial, score in zip(trials, (1.0, 0.0), strict=True)
    ]
    assert decisions == [TrialScheduler.CONTINUE] * 3 + [TrialScheduler.STOP]
    assert noted == [("bad", 2)]
