"""Reading beside LMDB, on sets that take moments; how fast anything is, nothing here says."""

import sys

import lmdb
import numpy as np
import pytest
from feature_sets import finish_features
from tiny_experiment import TINY

from pipelines.bench import clock, command
from pipelines.bench.read import RANDOM, RandomClips, make_random, measure_set
from vidflow.config.load import load_config
from vidflow.errors import VidflowError
from vidflow.records import ClipTokens
from vidflow.stages.experiment import Experiment

SMALL = RandomClips(num_clips=5, clips_per_file=2, num_frames=2, num_tokens=3, embed_dim=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for moments."""
    monkeypatch.setattr(clock, "_LEAST_SECONDS", 1e-3)


def test_every_way_of_reading_has_a_row_and_lmdb_holds_the_same_bytes(tmp_path):
    reader = make_random(tmp_path / "set", SMALL)
    rows = list(measure_set("random", reader, tmp_path / "lmdb", rounds=2))
    assert [row.way for row in rows] == ["files anew", "reader anew", "reader kept", "batches"]
    for row in rows:
        assert min(row.speed, row.lmdb, *row.ratio) > 0
        assert row.kilobytes == 2 * 3 * 4 * 2 / 1e3
        assert str(row).startswith("random")
    with lmdb.open(str(tmp_path / "lmdb"), readonly=True, lock=False) as env, env.begin() as txn:
        for index in range(len(reader)):
            assert txn.get(reader.keys[index].encode()) == reader[index].tokens.tobytes()


def test_clips_of_random_numbers_are_of_74_kb_and_of_2_4_mb():
    sizes = [2 * clips.num_frames * clips.num_tokens * clips.embed_dim for clips in RANDOM.values()]
    assert sizes == [73_728, 2_408_448]


def test_clips_of_several_shapes_are_read_but_make_no_batches(tmp_path):
    clips = [
        ClipTokens(
            key=f"{tokens}",
            label=0,
            split="train",
            pts_seconds=np.zeros(1),
            tokens=np.zeros((tokens, 4), np.float16),
            prefix=np.ones((1, 1, 4), np.float16),
            counts=np.full((1, 1), tokens, np.int32),
        )
        for tokens in (3, 5)
    ]
    reader = finish_features(tmp_path / "set", {"a.arrow": clips}, {"embed_dim": 4})
    rows = list(measure_set("ragged", reader, tmp_path / "lmdb", rounds=1))
    assert [row.way for row in rows] == ["files anew", "reader anew", "reader kept"]


def test_without_lmdb_one_message_says_so_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY.format(root=tmp_path / "root"))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(VidflowError, match=r"missing: lmdb.*`pip install lmdb`"):
        command.main(Experiment(load_config([tmp_path / "tiny.yaml"])), ["read"])


@pytest.mark.slow
def test_the_sets_of_random_numbers_and_that_of_the_config_are_read_beside_lmdb(vidflow, tiny):
    done = vidflow("bench", tiny, "--only", "read")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["random-small"] * 4 + ["random-large"] * 4 + ["base"] * 4
    assert not (tiny.parent / "root").exists()
