import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vidflow.errors import DamagedError, VidflowError
from vidflow.records import EpochResult
from vidflow.store.layout import TRIAL_RESULT, read_listed
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


@pytest.mark.parametrize(("name", "is_best"), [(LAST, (True,)), (BEST, (True, False))])
def test_a_trial_whose_files_are_damaged_can_still_be_marked_as_failed(tmp_path, name, is_best):
    _write(tmp_path, *is_best)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    result = write_failure(tmp_path, key="k" * 16, settings={"core": "mean"}, error="boom")
    assert result == load_result(tmp_path)
    assert (result.status, result.history) == ("failed", ())
    assert result.error.startswith(f"boom; {path}: ")


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


def test_a_finished_trial_whose_file_is_gone_cut_or_altered_is_not_over(tmp_path):
    for number, (victim, harm) in enumerate(itertools.product([BEST, PREDICTIONS, TRIAL_RESULT], HARMS)):
        directory = tmp_path / str(number)
        _write(directory, True, False)
        write_result(directory, "completed")
        assert load_result(directory) is not None
        HARMS[harm](directory / victim)
        assert load_result(directory) is None, f"{victim} {harm}"
        # Without reading a byte, too: what was found damaged was set aside.
        assert read_listed(directory / TRIAL_RESULT) is None


@pytest.mark.parametrize("victim", [BEST, PREDICTIONS])
def test_damaged_best_weights_are_never_taken_for_those_of_a_trial_that_is_closed_later(tmp_path, victim):
    _write(tmp_path, True, True)
    HARMS["altered"](tmp_path / victim)
    write_result(tmp_path, "stopped")
    assert _best_epoch(tmp_path) == (2, 2.0, 2.0)
    _write(tmp_path / "later", True, False)
    HARMS["altered"](tmp_path / "later" / victim)
    with pytest.raises(DamagedError, match=f"{victim}: not that of epoch 1"):
        write_result(tmp_path / "later", "stopped")


def test_a_damaged_file_is_set_aside_only_where_a_finished_trial_lists_it(tmp_path):
    _write(tmp_path, True)
    write_result(tmp_path, "completed")
    copy = tmp_path / "elsewhere" / BEST
    copy.parent.mkdir()
    shutil.copyfile(tmp_path / BEST, copy)
    for path in (copy, tmp_path / BEST):
        HARMS["altered"](path)
        with pytest.raises(DamagedError, match="damaged"):
            read_tensors(path)
    assert copy.exists()
    assert not (tmp_path / BEST).exists()


def test_reading_a_file_beside_somebody_elses_result_leaves_that_where_it_is(tmp_path):
    (tmp_path / "result.json").write_text('{"score": 1}')
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DamagedError, match="damaged"):
        read_tensors(tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "x.safetensors"]


def test_a_file_without_a_digest_is_said_to_be_of_an_older_vidflow(tmp_path):
    metadata = {"vidflow": json.dumps({"identity": {}, "epoch": 1})}
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / BEST, metadata)
    with pytest.raises(DamagedError, match=r"written by an older vidflow.*train it again"):
        read_tensors(tmp_path / BEST)


UNREADABLE = """
import os, sys
from pathlib import Path
from vidflow.errors import DamagedError, VidflowError
from vidflow.training.snapshot import publish_best, read_snapshot
folder = Path(sys.argv[1])
snapshot = read_snapshot(folder)
os.setuid(65534)
for read in (lambda: read_snapshot(folder), lambda: publish_best(folder, snapshot)):
    try:
        read()
    except VidflowError as error:
        assert not isinstance(error, DamagedError), error
        print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser can become another user")
def test_a_file_that_may_not_be_read_is_neither_gone_nor_damaged():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        _write(folder, True)
        for file in (LAST, BEST):
            (folder / file).chmod(0)
        command = [sys.executable, "-c", UNREADABLE, name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for file in (LAST, BEST):
        assert f"{name}/{file}: cannot be read (Permission denied)" in said


def test_no_changed_byte_of_a_snapshot_gives_other_tensors_or_metadata(tmp_path):
    _write(tmp_path, True)
    whole, rng = (tmp_path / LAST).read_bytes(), random.Random(0)
    wanted, refused = _contents(tmp_path / LAST), 0
    for _ in range(2000):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / LAST).write_bytes(changed)
        try:
            assert _contents(tmp_path / LAST) == wanted
        except DamagedError:
            refused += 1
    assert refused > 1500


def _contents(path) -> str:
    tensors, metadata = read_tensors(path)
    return repr((metadata, sorted((name, str(t.dtype), t.tolist()) for name, t in tensors.items())))


def _alter(path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


HARMS = {"gone": lambda path: path.unlink(), "cut": lambda path: os.truncate(path, 40), "altered": _alter}


def test_the_bytes_of_the_best_weights_do_not_depend_on_the_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); "
        "import test_snapshot; test_snapshot._write(Path(sys.argv[1]), True)"
    )
    for name in "abc":  # one in two would be equal by chance if there were two names to order
        command = [sys.executable, "-c", code, tmp_path / name, str(Path(__file__).parent)]
        subprocess.run(command, check=True)
    assert len({(tmp_path / name / BEST).read_bytes() for name in "abc"}) == 1
