"""Progress of units in progress: workers count clips, and a worker that dies takes its counts with it."""

import contextlib
import io
import logging
import os
import re
import time
from pathlib import Path

import pytest

from pipelines.ray_pool import map_units
from vidflow.config.schema import StageResources


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

    resources = StageResources(workers=1, num_cpus=1)
    with contextlib.redirect_stderr(io.StringIO()):
        results = list(map_units(build, [str(tmp_path)], resources, name="shard", sizes=[6], counted="clips"))
    assert results == ["done"]
    found = [re.match(r"shard: (\d) of 6 clips", line) for line in caplog.messages]
    numbers = [int(match[1]) for match in found if match]
    assert {0, 2, 3} <= set(numbers)
    assert max(numbers) <= 6
    fell = next(i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1])
    assert numbers[fell] <= 1
    assert numbers == sorted(numbers[:fell]) + sorted(numbers[fell:])
    assert any("1 reject" in line and "1 retry" in line for line in caplog.messages)
    assert "shard: a worker died on one unit; attempt 2 follows" in caplog.messages
