"""Progress of units in progress: workers count clips, and a worker that dies takes its counts with it.

And of trials that have no machine any more.
"""

import contextlib
import io
import logging
import os
import re
import time
from pathlib import Path

import pytest
import ray
from ray.tune.experiment import Trial

from pipelines.placement import Placement
from pipelines.ray_pool import map_units
from pipelines.tune_callbacks import RoomCallback
from pipelines.unit_counts import session_counts
from vidflow.errors import VidflowError


@pytest.fixture
def quick_lines(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "vidflow")
    for name in ("SECONDS_TO_FIRST_LINE", "SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(f"pipelines.display.{name}", 0.1)


def test_clips_are_counted_before_their_unit_is_done_and_not_twice_after_a_death(
    in_one_ray, quick_lines, caplog, tmp_path
):
    def build():
        def work(unit, count):
            for number in range(6):
                count(1, num_rejects=number == 1)
                time.sleep(0.4)
                died = Path(unit, "died")
                if number == 3 and not died.exists():
                    died.touch()
                    os._exit(1)
            return "done"

        return work

    ray.get(session_counts().read.remote([]))  # it is there
    placement = Placement(part="shard", num_cpus=1, num_gpus=0, device="cpu", workers=1, attempts=3, words="1 CPU")
    with contextlib.redirect_stderr(io.StringIO()):
        results = list(map_units(build, [str(tmp_path)], placement, name="shard", sizes=[6], counted="clips"))
    assert results == ["done"]
    found = [re.match(r"shard: (\d) of 6 clips", line) for line in caplog.messages]
    numbers = [int(match[1]) for match in found if match]
    fell = next(place for place in range(1, len(numbers)) if numbers[place] < numbers[place - 1])
    before, after = numbers[:fell], numbers[fell:]
    assert before == sorted(before)
    assert 1 <= before[-1] <= 4  # it died after the fourth
    assert after == sorted(after)
    assert after[0] <= 1
    assert 2 <= after[-1] <= 6
    assert any("1 reject" in line and "1 retry" in line for line in caplog.messages)
    assert "shard: a worker died on one unit; attempt 2 follows" in caplog.messages


def test_a_sweep_none_of_whose_trials_runs_ends_when_no_machine_holds_one_for_the_stated_time(in_one_ray):
    lost = Placement(
        part="trials", num_cpus=1000, num_gpus=0, processes=2, device="cpu", workers=1, attempts=3, words="1000 CPU"
    )
    trial = Trial("any", stub=True, storage=None)
    trial.set_status(Trial.RUNNING)
    RoomCallback(lost).on_step_end(1, [trial])
    trial.set_status(Trial.PENDING)
    with pytest.raises(VidflowError, match=r"no worker fits, each takes 2 times 1000 CPU .* waited 0 s for another"):
        RoomCallback(lost).on_step_end(2, [trial])
