"""A disk that runs full in each stage: one sentence, and the same command goes on once there is room again."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_experiment import TINY


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], check=False, capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def filled(folder: Path, *, but: int) -> Iterator[None]:
    filler = folder / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(folder).free - but))
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.slow
@pytest.mark.timeout(2400)  # some twenty commands
def test_a_full_disk_ends_each_stage_with_one_sentence_and_loses_nothing(small_disk, tmp_path, vidflow):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(root=small_disk / "root"))
    # Extraction gets room for its tokens, without which it does not start, but not for all that it writes.
    rooms = [("synth", 1 << 14), ("shard", 1 << 14), ("extract", 180_000), ("sweep", 1 << 14), ("report", 1 << 13)]
    # Room for the store of runs, but not for what trials write; then for some of that.
    rooms[3:3] = [("sweep trials.trial.seed=1", 900_000), ("sweep trials.trial.seed=2", 700_000)]
    for words, but in rooms:
        stage, *changes = words.split()
        if stage == "extract":
            with filled(small_disk, but=1 << 14):
                refused = vidflow(stage, config)
            assert refused.returncode == 2, refused.stderr
            assert re.search(r"the features of 60 clips take 154 kB, \S+ has 1\d.\d kB left; free", refused.stderr)
        before = {path: path.stat().st_mtime_ns for path in small_disk.glob("root/*/*/*") if path.is_file()}
        with filled(small_disk, but=but):
            done = vidflow(stage, config, *changes)
        assert done.returncode == 1, (words, done.stderr)
        assert "Traceback" not in done.stderr, (words, done.stderr)
        assert str(small_disk) in done.stderr.splitlines()[-1], (words, done.stderr)
        assert "the same command" in done.stderr.splitlines()[-1]
        for path, modified in before.items():
            assert path.stat().st_mtime_ns == modified
        done = vidflow(stage, config, *changes)
        assert done.returncode == 0, (words, done.stderr)
