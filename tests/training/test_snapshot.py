import dataclasses

import pytest
import torch

from vidflow.errors import DamagedError, VidflowError
from vidflow.records import EpochResult
from vidflow.store.layout import TRIAL_RESULT
from vidflow.training import snapshot as snapshots
from vidflow.training.snapshot import (
    BEST,
    LAST,
    PREDICTIONS,
    Snapshot,
    TrialIdentity,
    load_result,
    publish_best,
    read_snapshot,
    read_tensors,
    write_failure,
    write_result,
    write_snapshot,
)

IDENTITY = TrialIdentity(
    key="k" * 16,
    settings={"core": "gru", "num_heads": None, "learning_rate": 3e-4},
    recipe={"core": "gru"},
    num_parameters=6,
)


def _snapshot(*best_flags: bool) -> Snapshot:
    """A snapshot after as many epochs as there are flags; the weights are the number of the epoch."""
    history = tuple(
        EpochResult(epoch=epoch, metrics={"val/top1": epoch / 7, "train/loss": 1 / 3}, seconds=0.1, is_best=flag)
        for epoch, flag in enumerate(best_flags, 1)
    )
    epoch = len(best_flags)
    return Snapshot(
        identity=IDENTITY,
        history=history,
        model={"layer.weight": torch.full((2, 3), float(epoch)), "count": torch.tensor(epoch)},
        optimizer={"layer.weight/step": torch.tensor(float(epoch))},
        predictions={"logits": torch.full((4, 3), float(epoch))} if best_flags[-1] else {},
    )


def _write(directory, *best_flags: bool) -> None:
    """Write every epoch in turn."""
    for epoch in range(1, len(best_flags) + 1):
        write_snapshot(directory, _snapshot(*best_flags[:epoch]))


def _best_epoch(directory) -> tuple[int, float, float]:
    """Epoch that the best weights claim, that they are of, and that the predictions are of."""
    weights, metadata = read_tensors(directory / BEST)
    predictions, _ = read_tensors(directory / PREDICTIONS)
    return metadata["epoch"], weights["layer.weight"][0, 0].item(), predictions["logits"][0, 0].item()


def test_a_snapshot_reads_back_as_it_was_written(tmp_path):
    written = _snapshot(True, False, True)
    write_snapshot(tmp_path, written)
    read = read_snapshot(tmp_path)
    assert (read.identity, read.history) == (written.identity, written.history)
    for part in ("model", "optimizer", "predictions"):
        before, after = getattr(written, part), getattr(read, part)
        assert before.keys() == after.keys()
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
        )


def test_best_weights_and_predictions_stay_those_of_the_best_epoch(tmp_path):
    _write(tmp_path, True, True, False, False)
    assert _best_epoch(tmp_path) == (2, 2.0, 2.0)


@pytest.mark.parametrize("missing", [BEST, PREDICTIONS])
def test_a_kill_between_two_files_is_made_up_for(tmp_path, missing, monkeypatch):
    _write(tmp_path, True)
    replace = type(tmp_path).replace

    def die(path, target):
        if target.name == missing:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_snapshot(tmp_path, _snapshot(True, True))
    monkeypatch.undo()
    assert read_tensors(tmp_path / BEST)[1]["epoch"] == 1
    result = write_result(tmp_path, "stopped")
    assert len(result.history) == 2
    assert _best_epoch(tmp_path) == (2, 2.0, 2.0)


def test_lost_best_weights_of_an_earlier_epoch_are_an_error_and_not_another_epochs_weights(tmp_path):
    _write(tmp_path, True, False)
    (tmp_path / BEST).unlink()
    with pytest.raises(DamagedError, match="not that of epoch 1"):
        publish_best(tmp_path, read_snapshot(tmp_path))


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_cut_snapshot_is_reported_as_damaged(tmp_path, length):
    _write(tmp_path, True)
    path = tmp_path / LAST
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match=r"last\.safetensors: damaged"):
        read_snapshot(tmp_path)


def test_a_folder_without_an_epoch_has_no_snapshot_and_no_result(tmp_path):
    assert read_snapshot(tmp_path) is None
    assert load_result(tmp_path) is None
    with pytest.raises(VidflowError, match="has not finished an epoch"):
        write_result(tmp_path, "stopped")


def test_a_result_reads_back_equal_and_holds_no_path(tmp_path):
    _write(tmp_path, True, False)
    result = write_result(tmp_path, "completed")
    assert load_result(tmp_path) == result
    assert result.best.epoch == 1
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert load_result(moved) == dataclasses.replace(result, directory=moved)


def test_a_completed_trial_drops_its_snapshot_and_a_stopped_one_keeps_it(tmp_path):
    for status, kept in (("completed", False), ("stopped", True)):
        directory = tmp_path / status
        _write(directory, True)
        write_result(directory, status)
        assert (directory / LAST).exists() is kept
        assert sorted(path.name for path in directory.iterdir() if path.name != LAST) == sorted(
            [BEST, PREDICTIONS, TRIAL_RESULT]
        )


def test_a_failure_keeps_the_epochs_before_it(tmp_path):
    early = write_failure(tmp_path / "early", key="a", settings={"core": "mean"}, error="boom")
    assert (early.status, early.history, early.settings, early.best) == ("failed", (), {"core": "mean"}, None)
    assert load_result(tmp_path / "early") == early
    _write(tmp_path / "late", True, True)
    late = write_failure(tmp_path / "late", key="k" * 16, settings={}, error="boom")
    assert (len(late.history), late.num_parameters, late.error) == (2, 6, "boom")
    assert load_result(tmp_path / "late") == late


def test_no_file_is_written_in_place(tmp_path):
    _write(tmp_path, True)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    with (tmp_path / LAST).open("rb") as held:
        write_snapshot(tmp_path, _snapshot(True, True))
        # Who holds the old file still reads the old file.
        assert len(held.read()) > 0
    assert all((tmp_path / name).stat().st_ino != inode for name, inode in before.items())
    assert set(before) == {snapshots.LAST, snapshots.BEST, snapshots.PREDICTIONS}
