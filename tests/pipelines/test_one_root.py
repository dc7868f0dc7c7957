"""Two commands on one root of a disk: the second waits, or is refused, and never comes between two stages."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_second_command_is_refused_between_the_stages_too_and_the_first_ends_well(tiny, vidflow):
    command = [sys.executable, "-m", "pipelines.cli", "run", str(tiny)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy()) as first:
        said = []
        for line in first.stderr:
            said.append(line)
            if "synth: 60 videos" in line:  # the lock of this stage alone would be free now
                break
        second = vidflow("shard", tiny)
        said += first.stderr.readlines()
        assert first.wait() == 0, "".join(said)
    assert second.returncode == 1, second.stderr
    who = f"in use by process {first.pid} on {os.uname().nodename} (`vidflow run {tiny}`)"
    assert f"{who}; waiting for up to 10 s" in second.stderr
    assert f"{who}; wait for it" in second.stderr.splitlines()[-1]
    assert vidflow("run", tiny).returncode == 0
