import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.initial_weights import find_unfit_weights
from vidflow.config.fingerprints import fingerprint, sweep_settings, trial_settings
from vidflow.config.schema import Config, Encoder, FeatureSet, Trial, Trials
from vidflow.config.tasks import Objective
from vidflow.errors import DamagedError, VidflowError
from vidflow.stages.address import Address, locate_trial
from vidflow.store.initial_weights import read_initial
from vidflow.training.feeds import StoredFeed
from vidflow.training.initial import InitialWeights
from vidflow.training.labels import take_share
from vidflow.training.snapshot import _METADATA, BEST, LAST, read_tensors, save_tensors
from vidflow.training.trained_task import load_task, load_trial
from vidflow.training.trial import run_trial

HIDDEN = Trial(
    task="masked_tokens",
    core="gru",
    num_layers=1,
    readout_dim=16,
    readout_heads=2,
    epochs=2,
    batch_size=8,
    learning_rate=5e-3,
    precision="float32",
)
ANSWERS = dataclasses.replace(HIDDEN, task="classification", epochs=1)
MASKED, LOSS = Objective("val/masked_mse", "min"), Objective("val/loss", "min")


def config_of(root):
    return Config(root=str(root))


def run(trial, reader, root, *, key="0123456789abcdef", objective=LOSS):
    """Train a trial below a root, as a worker does."""
    directory = Path(root) / "trials" / key
    start = None if trial.init_from is None else read_initial(config_of(root), trial.init_from)
    where = {"directory": directory, "key": key, "objective": objective, "device": "cpu"}
    results = run_trial(trial, reader, initial=start, **where)
    return directory, list(results)


def core_of(directory):
    return {k: v for k, v in read_tensors(directory / BEST)[0].items() if k.startswith("core.")}


@pytest.fixture(scope="module")
def pretrained(noise_features, tmp_path_factory):
    """A root with a finished trial of masked tokens, and its folder."""
    root = tmp_path_factory.mktemp("pretrained")
    return root, run(HIDDEN, noise_features, root, objective=MASKED)[0]


@pytest.mark.parametrize("choice", ["random", "importance"])
def test_a_core_is_trained_without_labels_and_measured_beside_a_copy(feature_set, tmp_path, choice):
    # Frames of a clip are one vector with a little noise, so that the others tell what is hidden.
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(60, 1, 1, 2, 16)) + 0.1 * rng.normal(size=(60, 6, 1, 2, 16))
    reader = feature_set(tmp_path / "f", tokens, [-1] * 60, ["train"] * 40 + ["val"] * 20)
    trial = dataclasses.replace(HIDDEN, mask_choice=choice, epochs=15, learning_rate=2e-2)
    _, results = run(trial, reader, tmp_path, objective=MASKED)
    first, last = results[0].metrics, results[-1].metrics
    assert last["val/masked_mse"] < 0.7 * first["val/masked_mse"]
    assert last["val/masked_cosine"] > 0.6
    # The validation clips hide the same frames in every epoch, so the copy is as good each time.
    assert last["val/copied_mse"] == first["val/copied_mse"]
    assert last["val/copied_cosine"] > 0.9


def test_clips_too_short_to_hide_a_frame_and_show_one_are_refused(noise_features, tmp_path):
    with pytest.raises(VidflowError, match=r"mask_ratio 0\.9 leaves 0 of 3 frames visible"):
        run(dataclasses.replace(HIDDEN, mask_ratio=0.9), noise_features, tmp_path, objective=MASKED)


def test_hidden_frames_depend_on_seed_epoch_and_clip_alone(noise_features):
    def draws(indices, epoch, seed=0, batch_size=4):
        feed = StoredFeed(
            clips=noise_features,
            device=torch.device("cpu"),
            num_depths=1,
            arrays=(),
            unmerged=True,
            seed=seed,
            hides_frames=True,
        )
        batches = feed.batches(np.asarray(indices), batch_size=batch_size, epoch=epoch)
        return torch.cat([batch.targets["mask_draws"] for batch in batches])

    first = draws([3, 1, 2, 0, 5], 1)
    assert torch.equal(first, draws([0, 1, 2, 3, 5], 1, batch_size=2)[[3, 1, 2, 0, 4]])
    assert len({tuple(row) for row in first.tolist()}) == 5
    assert not torch.equal(first, draws([3, 1, 2, 0, 5], 2))
    assert not torch.equal(first, draws([3, 1, 2, 0, 5], 1, seed=1))
    assert torch.equal(draws([3, 1], None), draws([3, 1], None))


def test_a_resumed_pre_training_equals_one_without_a_break(noise_features, tmp_path):
    trial = dataclasses.replace(HIDDEN, epochs=3, core="mamba")
    whole, _ = run(trial, noise_features, tmp_path / "whole", objective=MASKED)
    folder = tmp_path / "broken" / "trials" / whole.name
    where = {"directory": folder, "key": whole.name, "objective": MASKED, "device": "cpu"}
    begun = run_trial(trial, noise_features, **where)
    next(begun)
    begun.close()
    assert (folder / LAST).exists()
    list(run_trial(trial, noise_features, **where))
    assert (folder / BEST).read_bytes() == (whole / BEST).read_bytes()


@pytest.mark.parametrize("named", ["key", "folder", "file"])
def test_a_trial_starts_from_the_core_of_another_and_from_nothing_else_of_it(pretrained, noise_features, named):
    root, folder = pretrained
    source = {"key": folder.name, "folder": str(folder), "file": str(folder / BEST)}[named]
    # So small a rate leaves the weights where they start.
    still = dataclasses.replace(ANSWERS, learning_rate=1e-30, weight_decay=0.0, init_from=source)
    started, _ = run(still, noise_features, root, key=f"{named:0<16}")
    for name, value in core_of(folder).items():
        torch.testing.assert_close(core_of(started)[name], value, rtol=0, atol=0)
    fresh, _ = run(dataclasses.replace(still, init_from=None), noise_features, root, key=f"{named:1<16}")
    mine, theirs = (read_tensors(each / BEST)[0] for each in (started, fresh))
    for name in (name for name in mine if name.startswith("readout.")):
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-20)
    assert read_tensors(started / BEST)[1]["identity"]["initial"] == {
        "trial": folder.name,
        "sha256": read_initial(config_of(root), source).sha256,
    }


def test_the_scale_of_the_tokens_comes_with_the_core(feature_set, tmp_path):
    rng = np.random.default_rng(0)
    labels, splits = [index % 2 for index in range(16)], ["train"] * 8 + ["val"] * 8
    unlike = [feature_set(tmp_path / str(f), f * rng.normal(size=(16, 3, 1, 2, 16)), labels, splits) for f in (1, 5)]
    scaled = dataclasses.replace(HIDDEN, standardize=True)
    source, _ = run(scaled, unlike[0], tmp_path, objective=MASKED)
    answers = dataclasses.replace(ANSWERS, standardize=True, init_from=source.name)
    started, _ = run(answers, unlike[1], tmp_path, key="f" * 16)
    assert torch.equal(
        load_task(started).token_scale.deviation, read_tensors(source / BEST)[0]["token_scale.deviation"]
    )


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"core": "mamba"}, "core is gru, wanted mamba"),
        ({"num_layers": 2}, "num_layers is 1, wanted 2; core.gru.bias_hh_l1 is missing"),
        ({"num_heads": 4}, "num_heads is 1, wanted 4"),
        ({"standardize": True}, "token_scale.deviation is missing; token_scale.mean is missing"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused_by_the_parameters_that_differ(pretrained, noise_features, change, faults):
    root, folder = pretrained
    with pytest.raises(VidflowError, match=f"do not fit: {faults}.*; give both trials the same core"):
        run(dataclasses.replace(ANSWERS, init_from=folder.name, **change), noise_features, root, key="e" * 16)


def test_what_does_not_fit_is_found_before_anything_starts(pretrained):
    root, folder = pretrained
    encoder = Encoder(name="test_vit", weights="random:0", img_size=96)
    trial = dataclasses.replace(ANSWERS, num_layers=2, init_from=folder.name)
    trials = Trials(trial=trial, axes={"init_from": [None, folder.name, "nothing"], "core": ["gru", "mamba"]})
    nothing, unfit = find_unfit_weights(dataclasses.replace(config_of(root), encoder=encoder, trials=trials))
    assert nothing.startswith("trials.axes.init_from: got 'nothing', no such trial")
    assert unfit.startswith(
        f"trials.axes.init_from: got {folder.name!r}: that trial's weights do not fit: embed_dim is "
    )
    assert "16, wanted 64; num_layers is 1, wanted 2" in unfit


def test_sources_that_are_no_finished_trial_are_refused(pretrained, tmp_path):
    root, folder = pretrained
    config = config_of(root)
    shutil.copytree(folder, tmp_path / "open")
    (tmp_path / "open" / "result.json").unlink()
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    for source, message in (
        ("0" * 16, "no such trial; wanted the key of a finished trial in"),
        ("0" * 32, "a run in MLflow whose weights are not in .*initial; `vidflow sweep`"),
        (str(tmp_path), "no such trial"),
        (str(tmp_path / "open"), "not finished"),
        (str(tmp_path / "other.safetensors"), r"is not the best\.safetensors of one"),
    ):
        with pytest.raises(VidflowError, match=rf"^trials\.trial\.init_from: got '.*{message}"):
            read_initial(config, source)


def test_damaged_weights_of_a_trial_of_another_configuration_are_named_and_left_alone(pretrained, tmp_path):
    _, folder = pretrained
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    data = bytearray((moved / BEST).read_bytes())
    data[-1] ^= 1
    (moved / BEST).write_bytes(data)
    with pytest.raises(DamagedError, match=r"damaged .* the command that trained it makes it again"):
        InitialWeights(moved / BEST)
    assert (moved / BEST).exists()


def test_weights_decide_the_address_of_a_trial_and_their_place_does_not(pretrained, tmp_path):
    root, folder = pretrained
    config, features = config_of(root), Address(directory=root, settings={})
    moved = shutil.copytree(folder, tmp_path / "elsewhere")

    def address(source):
        trial = dataclasses.replace(ANSWERS, init_from=source)
        settings = dataclasses.replace(config, trials=Trials(trial=trial))
        return locate_trial(settings, trial, features).fingerprint

    assert address(folder.name) == address(str(folder)) == address(str(moved / BEST))
    assert address(folder.name) != address(None)
    tensors, metadata = read_tensors(folder / BEST)
    tensors["core.output_norm.bias"] += 1
    save_tensors(tensors, moved / BEST, {_METADATA: json.dumps(metadata)})
    assert address(str(moved)) != address(folder.name)


def test_the_new_settings_at_their_defaults_move_no_address():
    config = Config(features={"base": FeatureSet()})
    new = {"init_from", "train_fraction", "mask_ratio", "mask_choice", "mask_loss"}
    assert not new & trial_settings(config, Trial(), "features", "val/top1", "max").keys()
    assert not new & sweep_settings(config, {})["trial"].keys()
    named = dataclasses.replace(config, trials=Trials(trial=Trial(init_from="a"), axes={"init_from": [None, "a"]}))
    values = sweep_settings(named, {"a": "digest"})
    assert (values["trial"]["init_from"], values["axes"]["init_from"]) == ("digest", [None, "digest"])
    assert fingerprint(values) != fingerprint(sweep_settings(named, {"a": "other"}))


def test_a_trial_that_only_trains_a_core_predicts_no_video(pretrained):
    with pytest.raises(VidflowError, match=r"only trains a core.*trials\.trial\.init_from="):
        load_trial(pretrained[1] / BEST)


def test_a_share_of_the_clips_has_that_share_of_each_class_and_grows_with_it():
    labels = [0] * 40 + [1] * 15 + [2]
    keys, indices = [f"clip{index}" for index in range(56)], np.arange(56)

    def take(share, seed=0):
        return take_share(indices, keys, labels, share=share, seed=seed).tolist()

    tenth = take(0.1)
    assert [sum(labels[index] == each for index in tenth) for each in range(3)] == [4, 2, 1]
    assert tenth == sorted(tenth) == take(0.1)
    assert set(tenth) < set(take(0.5)) < set(take(1.0)) == set(range(56))
    assert tenth != take(0.1, seed=1)


def test_a_share_of_videos_has_all_their_clips():
    owners, labels = [f"video{index // 5}" for index in range(100)], [index // 50 for index in range(100)]
    taken = take_share(np.arange(100), owners, labels, share=0.3, seed=0).tolist()
    assert sorted(Counter(owners[index] for index in taken).values()) == [5] * 6
    assert [sum(labels[index] == each for index in taken) for each in range(2)] == [15, 15]


def test_a_trial_learns_from_a_share_of_the_training_clips_and_is_measured_on_all_others(noise_features, tmp_path):
    some = dataclasses.replace(ANSWERS, train_fraction=0.25, batch_size=1)
    folder, _ = run(some, noise_features, tmp_path)
    whole, _ = run(dataclasses.replace(some, train_fraction=1.0), noise_features, tmp_path, key="a" * 16)
    result = json.loads((folder / "result.json").read_text())
    assert result["settings"]["train_fraction"] == 0.25
    train = np.flatnonzero(np.asarray(noise_features.splits) == "train")
    taken = take_share(train, noise_features.keys, noise_features.labels, share=0.25, seed=0)
    assert len(taken) == 6
    assert not torch.equal(*(read_tensors(each / BEST)[0]["core.gru.weight_hh_l0"] for each in (folder, whole)))
    assert len(read_tensors(folder / "predictions.safetensors")[0]["indices"]) == 12
    # If all clips of a class are of one video, the smallest share is the whole.
    noise_features.videos[:] = map(str, noise_features.labels)
    videos, _ = run(some, noise_features, tmp_path, key="b" * 16)
    assert torch.equal(*(read_tensors(each / BEST)[0]["core.gru.weight_hh_l0"] for each in (videos, whole)))
