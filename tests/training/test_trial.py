import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from vidflow.config.schema import SplitNames, Trial
from vidflow.config.tasks import Objective
from vidflow.errors import VidflowError
from vidflow.training.batches import iterate_batches
from vidflow.training.recipe import module_recipe
from vidflow.training.snapshot import BEST, PREDICTIONS, read_tensors
from vidflow.training.trained_task import load_task, load_trial
from vidflow.training.trial import load_result, run_trial

SMALL = Trial(
    core="gru",
    num_layers=1,
    readout_dim=16,
    readout_heads=2,
    epochs=1,
    batch_size=8,
    learning_rate=5e-3,
    precision="float32",
)


def _run(trial, reader, directory, *, objective="val/loss", mode="min"):
    return list(
        run_trial(trial, reader, directory=directory, key="key", objective=Objective(objective, mode), device="cpu")
    )


@pytest.fixture(scope="module")
def sequences(tmp_path_factory, feature_set):
    """Clips of one path through feature space in class 0, and each played backwards in class 1."""
    rng = np.random.default_rng(0)
    path = rng.normal(size=(1, 6, 1, 2, 16))
    forwards = path + 0.3 * rng.normal(size=(60, 6, 1, 2, 16))
    tokens = np.stack([forwards, forwards[:, ::-1]], axis=1).reshape(120, 6, 1, 2, 16)
    labels = [index % 2 for index in range(120)]
    return feature_set(tmp_path_factory.mktemp("order"), tokens, labels, ["train"] * 80 + ["val"] * 40)


def test_a_gru_tells_a_sequence_from_its_reverse_and_a_mean_cannot(sequences, tmp_path):
    top1 = {}
    for core in ("gru", "mean"):
        trial = dataclasses.replace(SMALL, core=core, epochs=8, every_frame_weight=0.0)
        history = _run(trial, sequences, tmp_path / core, objective="val/top1", mode="max")
        top1[core] = history[-1].metrics["val/top1"]
    assert top1["gru"] > 0.95
    # A clip and its reverse have the same mean but for rounding, so one of the two is wrong.
    assert abs(top1["mean"] - 0.5) <= 0.05


def test_tokens_are_standardised_by_the_training_split_and_the_scale_goes_with_the_weights(sequences, tmp_path):
    trial = dataclasses.replace(SMALL, standardize=True, epochs=2)
    _run(trial, sequences, tmp_path)
    task = load_task(tmp_path)
    train = np.flatnonzero(np.asarray(sequences.splits) == "train")
    rows = np.concatenate([sequences[int(index)].tokens for index in train]).astype(np.float64)
    np.testing.assert_allclose(task.token_scale.mean[0, 0], rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(task.token_scale.deviation[0, 0], rows.std(0), rtol=1e-3)
    batch = next(iterate_batches(sequences, train[:4], batch_size=4, device=torch.device("cpu")))
    scaled = (batch.tokens.float() - task.token_scale.mean) / task.token_scale.deviation
    expected = task(batch.tokens, batch.prefix, {})["logits"]
    task.token_scale.mean.zero_()
    task.token_scale.deviation.fill_(1)
    torch.testing.assert_close(task(scaled, batch.prefix, {})["logits"], expected)


@pytest.mark.parametrize(
    ("task", "metric", "kept"),
    [
        ("box_tracking", "val/miou", {"boxes": (4, 3, 3, 4)}),
        ("point_tracking", "val/average_jaccard", {"points": (4, 3, 3, 2), "visibility_logits": (4, 3, 3)}),
        ("depth", "val/abs_rel", {"depth": (4, 3, 16, 16)}),
        ("camera_pose", "val/rpe_translation_mm", {"camera_motion": (4, 3, 9)}),
    ],
)
def test_dense_tasks_train_and_leave_pictures_worth_of_predictions(annotated_features, tmp_path, task, metric, kept):
    trial = dataclasses.replace(SMALL, task=task, epochs=3)
    history = _run(trial, annotated_features, tmp_path, objective=metric, mode="min")
    assert all(np.isfinite(list(result.metrics.values())).all() for result in history)
    assert history[-1].metrics["train/loss"] < history[0].metrics["train/loss"]
    predictions, _ = read_tensors(tmp_path / PREDICTIONS)
    assert predictions["indices"].tolist() == [8, 9, 10, 11]
    assert {name: tuple(predictions[name].shape) for name in kept} == kept


def test_the_rebuilt_task_gives_the_predictions_that_were_kept(noise_features, tmp_path):
    trial = dataclasses.replace(SMALL, core="gated_transformer", epochs=3)
    history = _run(trial, noise_features, tmp_path)
    task = load_task(tmp_path)
    assert not task.training
    predictions, metadata = read_tensors(tmp_path / PREDICTIONS)
    assert metadata["epoch"] == load_result(tmp_path).best.epoch == max(r.epoch for r in history if r.is_best)
    for batch in iterate_batches(noise_features, np.arange(24, 36), batch_size=8, device=torch.device("cpu")):
        with torch.no_grad():
            logits = task(batch.tokens, batch.prefix, {})["logits"]
        rows = torch.isin(predictions["indices"], torch.from_numpy(batch.indices))
        # Same weights, same batches, same machine: at most the kernels chosen without autograd differ.
        torch.testing.assert_close(logits[:, -1], predictions["logits"][rows], atol=1e-6, rtol=1e-6)


def test_a_trial_depends_on_its_seed_and_not_on_what_the_process_did_before(noise_features, tmp_path):
    weights = {}
    for name, noise, seed in (("first", 0, 1), ("again", 123, 1), ("other", 0, 2)):
        torch.manual_seed(noise)
        _run(dataclasses.replace(SMALL, seed=seed), noise_features, tmp_path / name)
        weights[name] = read_tensors(tmp_path / name / BEST)[0]
    assert all(torch.equal(value, weights["again"][name]) for name, value in weights["first"].items())
    assert not any(
        torch.equal(value, weights["other"][name]) for name, value in weights["first"].items() if value.ndim > 1
    )


def test_the_result_holds_the_settings_flat_and_the_number_of_parameters(noise_features, tmp_path):
    (epoch,) = _run(SMALL, noise_features, tmp_path)
    result = load_result(tmp_path)
    assert result.settings == dataclasses.asdict(SMALL)
    assert result.num_parameters == sum(parameter.numel() for parameter in load_task(tmp_path).parameters())
    assert result.history == (epoch,)
    assert {"train/loss", "val/loss", "val/top1", "val/top1_low", "val/top1_high", "val/top5"} <= epoch.metrics.keys()
    assert epoch.metrics["train/clips_per_second"] > 0
    json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_unmixed_depths_read_the_last_depth_alone(tmp_path, feature_set):
    tokens = np.random.default_rng(0).normal(size=(16, 2, 3, 4, 16))
    labels, splits = [index % 2 for index in range(16)], ["train"] * 8 + ["val"] * 8
    deep = feature_set(tmp_path / "deep", tokens, labels, splits)
    last = feature_set(tmp_path / "last", tokens[:, :, 2:], labels, splits)
    unmixed = dataclasses.replace(SMALL, mix_depths=False)
    first, second = _run(unmixed, deep, tmp_path / "a"), _run(unmixed, last, tmp_path / "b")
    assert first[0].metrics["val/loss"] == second[0].metrics["val/loss"]
    assert module_recipe(SMALL, deep).num_depths == 3
    assert module_recipe(unmixed, deep).num_depths == 1


def test_features_without_a_split_or_a_label_are_refused_by_name(tmp_path, feature_set, annotated_features):
    tokens = np.zeros((2, 2, 1, 3, 16))
    only_train = feature_set(tmp_path / "a", tokens, [0, 1], ["train", "test"])
    with pytest.raises(VidflowError, match="no clip of split `val`; splits found: test, train"):
        _run(SMALL, only_train, tmp_path / "b")
    with pytest.raises(VidflowError, match="8 clips of split `train` have no label, such as clip000"):
        _run(SMALL, annotated_features, tmp_path / "c")


def test_a_width_that_does_not_fit_its_heads_is_an_error_for_the_user(noise_features, tmp_path):
    with pytest.raises(VidflowError, match="trial key: readout_dim 16 does not split into readout_heads 3"):
        _run(dataclasses.replace(SMALL, readout_heads=3), noise_features, tmp_path)


def test_the_weights_say_what_they_were_trained_on(noise_features, tmp_path):
    _run(SMALL, noise_features, tmp_path)
    moved = (tmp_path / BEST).rename(tmp_path / "alone.safetensors")
    task, identity = load_trial(moved)
    assert identity.settings == dataclasses.asdict(SMALL)
    assert identity.features == {**noise_features.metadata, "fps": 8.0}  # frames an eighth of a second apart
    assert sum(parameter.numel() for parameter in task.parameters()) == identity.num_parameters


def test_clips_of_one_moment_have_no_rate(tmp_path, feature_set):
    features = feature_set(tmp_path / "f", np.zeros((4, 1, 1, 3, 16)), [0, 1, 0, 1], ["train"] * 2 + ["val"] * 2)
    _run(SMALL, features, tmp_path)
    assert load_trial(tmp_path / BEST)[1].features["fps"] is None


def test_a_trial_without_weights_cannot_be_loaded(tmp_path):
    with pytest.raises(VidflowError, match=r"best\.safetensors: no such file"):
        load_task(tmp_path)


def test_the_best_epoch_is_measured_once_on_the_test_split_and_nothing_else_changes(feature_set, tmp_path):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(60, 4, 1, 2, 16))
    splits = ["fit"] * 30 + ["rank"] * 20 + ["last"] * 10
    reader = feature_set(tmp_path / "features", tokens, [index % 2 for index in range(60)], splits)
    trial = dataclasses.replace(SMALL, epochs=6)  # noise, so that an early epoch is the best
    histories = {}
    for test in (None, "last"):
        names = SplitNames(train="fit", val="rank", test=test)
        objective = Objective("val/loss", "min")
        run = run_trial(trial, reader, directory=tmp_path / str(test), key="k", objective=objective, names=names)
        histories[test] = list(run)
    plain, tested = (
        [{k: v for k, v in r.metrics.items() if "per_second" not in k} for r in histories[n]] for n in (None, "last")
    )
    measured = {name: value for name, value in tested[-1].items() if name.startswith("test/")}
    assert not histories["last"][-1].is_best
    assert plain[:-1] == tested[:-1]
    assert plain[-1] | measured == tested[-1]
    result = load_result(tmp_path / "last")
    assert result.test == measured
    task = load_task(tmp_path / "last")
    batch = next(iterate_batches(reader, np.arange(50, 60), batch_size=10, device=torch.device("cpu"), num_depths=1))
    with torch.inference_mode():
        logits = task(batch.tokens, batch.prefix, task.queries_of(batch.targets))["logits"][:, -1]
    hits = (logits.argmax(-1) == batch.targets["label"]).float().mean()
    assert math.isclose(measured["test/top1"], float(hits), abs_tol=1e-6)
