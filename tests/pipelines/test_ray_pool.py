"""A local Ray: where it listens, and who may read the token that opens it."""

import os
import subprocess
import sys

import pytest

from pipelines.ray_session import ray_session
from vidflow.config.schema import Config
from vidflow.errors import VidflowError

LISTENERS = """
import contextlib, os, sys
from pathlib import Path
import ray
import psutil  # Ray brings it
from pipelines.ray_pool import map_units
from pipelines.ray_session import place, ray_session
from vidflow.config.load import load_config

config = load_config([Path(sys.argv[1])])
with ray_session(config):
    list(map_units(lambda: lambda number, count: abs(number), [1, 2], place(config, "shard"), name="x"))
    us = psutil.Process()
    for process in [us, *us.children(recursive=True)]:
        # Short-lived helpers come and go.
        with contextlib.suppress(psutil.NoSuchProcess):
            for link in process.net_connections("inet"):
                if link.status in ("LISTEN", "NONE") and not link.raddr:
                    print(link.laddr.ip, process.name())
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_local_ray_listens_on_loopback_alone_and_its_token_is_ours_alone(tiny, tmp_path, mode):
    token = tmp_path / ".ray" / "auth_token"
    if mode is not None:
        token.parent.mkdir()
        token.write_text("0" * 64)
        token.chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS, tiny],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    listeners = [line.split() for line in done.stdout.splitlines()]
    assert {name for _, name in listeners} >= {"gcs_server", "raylet"}
    assert {address for address, _ in listeners} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def surroundings(monkeypatch):
    """An environment in which nothing is said about Ray's token; the Ray of other tests counts as none."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    return monkeypatch


def refusal() -> str:
    """Start a session, which is refused before Ray starts, and return what is said."""
    with pytest.raises(VidflowError) as caught, ray_session(Config()):
        pass
    return str(caught.value)


def test_a_home_folder_that_can_hold_no_token_is_one_sentence(surroundings):
    surroundings.setenv("HOME", "/proc/nobody")
    said = refusal()
    assert "the home folder cannot hold Ray's token ([Errno 2] No such file or directory: '/proc/nobody')" in said
    assert "RAY_AUTH_MODE=disabled" in said


def test_a_token_file_that_the_user_names_is_read_and_neither_made_nor_changed(surroundings, tmp_path):
    surroundings.setenv("HOME", "/proc/nobody")
    named = tmp_path / "token"
    surroundings.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert f"RAY_AUTH_TOKEN_PATH: got {named} (No such file or directory)" in refusal()
    assert not named.exists()
    named.touch(0o640)
    assert f"RAY_AUTH_TOKEN_PATH: got {named} (it is empty)" in refusal()
    assert named.stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
@pytest.mark.parametrize("mode", [{"RAY_AUTH_MODE": "Disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_no_home_folder_is_needed_where_no_token_is_made(tiny, mode):
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS, tiny],
        env={**os.environ, "HOME": "/proc/nobody", **mode},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "raylet" in done.stdout
