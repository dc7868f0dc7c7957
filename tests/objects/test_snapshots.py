"""Trials that are not over, in an object store."""

import pytest
import torch

from vidflow.records import EpochResult
from vidflow.stages.verify import repair, verify_root
from vidflow.store.layout import exists, publish
from vidflow.training.snapshot import LAST, Snapshot, TrialIdentity, find_damage, write_snapshot

pytestmark = pytest.mark.slow
KEY = "0123456789abcdef"


def test_a_snapshot_is_sound_until_it_is_damaged_and_then_it_is_deleted(root):
    identity = TrialIdentity(key=KEY, settings={"core": "gru"}, recipe={}, num_parameters=1)
    history = (EpochResult(epoch=1, metrics={"val/top1": 0.5}, is_best=True),)
    folder, model = root / "trials" / KEY, {"weight": torch.arange(100.0)}
    write_snapshot(folder, Snapshot(identity=identity, history=history, model=model, optimizer={}))
    assert {finding.level for finding in verify_root(root, find_damage).findings} == {"unfinished"}

    data = bytearray((folder / LAST).read_bytes())
    data[-1] ^= 1
    with publish(folder / LAST) as aside:
        aside.write_bytes(data)
    found = verify_root(root, find_damage)
    assert [(finding.path, finding.problem) for finding in found.broken] == [
        (folder / LAST, "not the values that a trial wrote")
    ]
    assert list(repair(found, find_damage)) == [folder / LAST]
    assert not exists(folder / LAST)
    assert not verify_root(root, find_damage).broken
