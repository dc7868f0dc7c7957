"""The sweep on a real terminal, seen through tmux."""

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid

import pytest
from tiny_experiment import TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


def tmux(*words: str) -> str:
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def session():
    name = f"vidflow-{uuid.uuid4().hex[:8]}"
    yield name
    subprocess.run(["tmux", "kill-session", "-t", name], check=False, capture_output=True)


def wait_for(session: str, *wanted: str, seconds: float = 200) -> list[str]:
    """Return the lines of the screen once they hold all that is wanted."""
    deadline = time.monotonic() + seconds
    while not all(text in (screen := tmux("capture-pane", "-p", "-t", session)) for text in wanted):
        assert time.monotonic() < deadline, screen
        time.sleep(0.05)
    return screen.splitlines()


def test_a_terminal_shows_clips_then_a_table_of_trials_and_ctrl_c_leaves_it_clean(tmp_path, session):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(root=tmp_path / "root"))
    words = ["run", config, "trials.trial.epochs=300", "video.synthetic.num_train=400"]
    command = shlex.join([sys.executable, "-m", "pipelines.cli", *map(str, words)])
    started = time.monotonic()
    tmux("new-session", "-d", "-s", session, "-x", "120", "-y", "30", f"cd {os.getcwd()}; {command}; echo left $?; cat")
    wait_for(session, "...", seconds=10)
    assert time.monotonic() - started < 10  # on an idle machine 2 s
    wait_for(session, "scan ", " of 420 files")
    wait_for(session, "shard ", " of 420 clips")
    screen = wait_for(session, "core=mean", "core=gru", "running", "/300", "epochs", "left")
    header = next(number for number, line in enumerate(screen) if line.startswith("trial "))
    assert screen[header].split() == ["trial", "epoch", "val/top1", "best", "time", "state"]
    assert all(len(line.split()) == 6 for line in screen[header + 1 : header + 3])
    assert "sweep: 0 of 2 trials finished" in screen[header + 3]
    assert any(" extract: base, 420 clips" in line for line in screen[:header]), screen  # log lines stay above
    tmux("send-keys", "-t", session, "C-c")
    screen = wait_for(session, "left 1")
    assert "vidflow: interrupted; the same command resumes from here" in screen
    assert not any(line.startswith("trial ") for line in screen)
    assert "cursor 1" in tmux("display-message", "-p", "-t", session, "cursor #{cursor_flag}")
