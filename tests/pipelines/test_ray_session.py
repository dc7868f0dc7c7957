"""A local Ray: where it listens, and who may read the token that opens it."""

import os
import subprocess
import sys

import pytest

LISTENERS = """
import contextlib, os, sys
from pathlib import Path
import ray
import psutil  # Ray brings it
from pipelines.job import map_units, ray_session
from vidflow.config.load import load_config

config = load_config([Path(sys.argv[1])])
with ray_session(config):
    list(map_units(lambda: abs, [1, 2], config.resources.shard, name="x"))
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
    assert "Token authentication is enabled" in done.stderr
