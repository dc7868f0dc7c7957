import os
from dataclasses import replace
from pathlib import Path

import pytest

from vidflow.config.fingerprints import (
    clip_settings,
    feature_settings,
    fingerprint,
    shard_settings,
    sweep_settings,
    trial_settings,
)
from vidflow.config.load import config_to_yaml, load_config
from vidflow.config.schema import SplitNames
from vidflow.errors import ConfigError

ROOT = Path(__file__).parents[2]

CONF = Path(__file__).parents[2] / "conf"


def write(folder: Path, text: str, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_problem_is_reported_at_once_with_file_key_and_nearest_name(tmp_path):
    path = write(
        tmp_path,
        "video: {sizee: 96, sampling: {mode: uniformm, num_frames: 0}}\n"
        "encoder: {img_size: abc}\nfeatures: {base: {depth: [1]}}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config([path], ["shards.jpeg_quality=101"])
    message = str(caught.value)
    assert message.startswith("6 problems")
    for part in (
        f"{path}: video.sizee: no such setting; did you mean `size`?",
        "video.sampling.mode: got 'uniformm'",
        "video.sampling.num_frames: got 0",
        "encoder.img_size: got 'abc'",
        "features.base.depth: no such setting; did you mean `depths`?",
        "command line (shards.jpeg_quality=101): shards.jpeg_quality: got 101",
    ):
        assert part in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("trials: {axes: {corre: [mean]}}", "did you mean `core`?"),
        ("trials: {axes: {core: [mean, gruu]}}", "'gruu'"),
        (
            "trials: {axes: {features: [base, other]}}",
            "axes.features: got 'other', no such feature set; valid",
        ),
        ("trials: {axes: {learning_rate: {low: 0.1, high: 1}}}", "a range needs `algorithm: random`"),
        ("trials: {algorithm: random, axes: {learning_rate: {low: 1, high: 0.1}}}", "low < high"),
        ("trials: {axes: {seed: []}}", "got no values"),
        ("encoder: {img_size: 448}", "at most video.size = 224"),
        ("encoder: {weights: 'random:x'}", "wanted a whole number after `random:`"),
        ("encoder: {weights: nowhere.safetensors}", "wanted `hub`, `random:SEED` or an existing file"),
        ("video: {manifest: nowhere.csv}", "no such file or folder: 'nowhere.csv'"),
        ("features: {base: {depths: [1, 1]}}", "wanted different block numbers"),
        ("features: {../x: {depths: [1]}}", "letters, digits"),
        ("root: s3://bucket/x", "tracking.uri: required, as root = 's3://bucket/x' cannot hold the runs"),
        (
            "root: s3://bucket/x\ntracking: {uri: 'http://127.0.0.1:1'}\nevaluate: {fit_head: train}",
            "evaluate.fit_head: got 'train' with root = 's3://bucket/x'",
        ),
        ("root: s3:///x", "root: got 's3:///x', wanted the name of a bucket"),
        ("root: s3://bucket/a/../b", "root: got 's3://bucket/a/../b', wanted it without empty parts"),
        ("root: 's3://bucket/a?b'", "wanted letters, digits and plain marks only"),
        ("resources: {cache: here}", "resources.cache: got 'here', wanted an absolute path"),
        ("root: gs:/b/x", "wanted a path on a disk"),
        ("video: {manifest: 's3://bucket/x'}", "video.manifest: got 's3://bucket/x', wanted a table there"),
        ("video: {manifest: 'http://h/x.csv'}", "video.manifest: got 'http://h/x.csv', wanted a path on a disk"),
        ("video: {video_root: 'file:///x'}", "video.video_root: got 'file:///x', wanted a path on a disk"),
        ("encoder: {weights: 'https://h/w.pt'}", "encoder.weights: got 'https://h/w.pt', wanted a path on a disk"),
        ("root: a%b", "wanted a path without `%`"),
        ("trials: {objective: val/top2}", "got 'val/top2', which classification does not measure; did you mean"),
        ("trials: {trial: {readout_dim: 130}}", "trials.trial.readout_dim: got 130, wanted a multiple of"),
        (
            "{video: {sampling: {num_frames: 1}}, trials: {trial: {task: depth}, axes: {task: [camera_pose]}}}",
            "at least 2",
        ),
        ("root: a?b#c", "wanted a path without `?` or `#`"),
        ("root: /etc/passwd/x", "root: /etc/passwd is a file"),
        ("video: {sampling: {fps: .inf}}", "got inf; input should be a finite number"),
        ("video: {sampling: {stride_seconds: .nan}}", "got nan; input should be a finite number"),
        ("resources: {decode_timeout_seconds: .inf}", "got inf; input should be a finite number"),
        ("resources: {trials: {num_cpus: .inf}}", "got inf; input should be a finite number"),
        ("encoder: {mean: [.nan, 0, 0]}", "got nan; input should be a finite number"),
        ("encoder: {std: [0, 1, 1]}", "encoder.std.0: got 0; input should be greater than 0"),
        ("trials: {trial: {learning_rate: .inf}}", "got inf; input should be a finite number"),
        ("trials: {axes: {learning_rate: [.nan]}}", "got nan; input should be a finite number"),
        ("trials: {algorithm: random, axes: {learning_rate: {low: .nan, high: 1}}}", "input should be a finite number"),
        ("features: {base: {reducer: {settings: {keep: .nan}}}}", "keep: got nan; input should be a finite number"),
        ("features: {base: {reducer: {settings: {keep: [1, -.inf]}}}}", "got -inf; input should be a finite number"),
        ("trials: {num_samples: 3000000000}", "input should be less than 2147483648"),
        ("tracking: {uri: 'http://h/?token=x'}", "wanted an address without '?'"),
        ("tracking: {uri: 'http://u@h'}", "not USER:PASSWORD@"),
        ("tracking: {uri: 'http://h:x'}", "which is not an address"),
        ("tracking: {uri: 'sqlite:////a%b/x.db'}", "wanted an address without '%'"),
    ],
)
def test_what_single_fields_cannot_see_is_found_before_anything_starts(tmp_path, text, part):
    with pytest.raises(ConfigError, match="nothing was started") as caught:
        load_config([write(tmp_path, text)])
    assert part in str(caught.value)


def test_user_name_and_password_go_to_the_environment_and_the_address_keeps_neither(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "old")
    config = load_config([write(tmp_path, "tracking: {uri: 'https://me:p%40%2Fw@host:5000/x'}")])
    assert config.tracking.uri == "https://host:5000/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "p@/w")


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path, "root: x", "demo.yaml")
    with pytest.raises(ConfigError, match=r"did you mean demo\.yaml"):
        load_config([tmp_path / "demoo.yaml"])


def test_files_merge_left_to_right_and_overrides_win(tmp_path):
    first = write(tmp_path, "root: a\nvideo: {size: 64}\nencoder: {img_size: 32}", "a.yaml")
    second = write(tmp_path, "video: {size: 96}", "b.yaml")
    config = load_config([first, second], ["root=c", "trials.axes.core=[mean,gru]"])
    assert (config.root, config.video.size, config.encoder.img_size) == (str(Path("c").absolute()), 96, 32)
    assert config.trials.axes["core"] == ["mean", "gru"]


def test_a_path_to_start_trials_from_is_seen_from_here_and_a_key_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pre.safetensors").touch()
    sources = ["runs/a/trials/k", "pre.safetensors", "s3://bucket/x/trials/k", "0123456789abcdef", "~nobody-here/x"]
    config = load_config(
        [write(tmp_path, "{}")],
        [f"trials.axes.init_from=[null,{','.join(sources)}]", f"trials.trial.init_from={sources[1]}"],
    )
    seen = [None, f"{tmp_path}/runs/a/trials/k", f"{tmp_path}/pre.safetensors", *sources[2:]]
    assert config.trials.axes["init_from"] == seen
    assert config.trials.trial.init_from == f"{tmp_path}/pre.safetensors"


def test_the_merged_settings_read_back_to_the_same_config(tmp_path):
    config = load_config([CONF / "demo.yaml"])
    assert load_config([write(tmp_path, config_to_yaml(config))]) == config


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_experiment_says_how_to_run_it(path):
    first = path.read_text().partition("\n")[0]
    # An overlay stands behind the experiment that it changes.
    assert first.startswith(("# vidflow run conf/", "# vidflow evaluate conf/"))
    assert f"conf/{path.name}" in first


def addresses(config):
    shards = fingerprint(shard_settings(config, "videos", {"av": "1"}))
    features = fingerprint(feature_settings(config, config.features["base"], shards, "weights"))
    return (
        shards,
        features,
        fingerprint(trial_settings(config, config.trials.trial, features, "val/top1", "max")),
    )


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("resources.extract.workers=7", (False, False, False)),
        ("resources.frames_per_batch=3", (False, False, False)),
        ("root=elsewhere", (False, False, False)),
        ("shards.max_reject_fraction=0.5", (False, False, False)),
        ("trials.trial.seed=3", (False, False, True)),
        ("encoder.name=vit_tiny_patch16_224", (False, True, True)),
        ("features.base.depths=[2]", (False, True, True)),
        ("video.resize_filter=bilinear", (True, True, True)),
        ("video.sampling.num_frames=8", (True, True, True)),
        ("shards.clips_per_shard=9", (True, True, True)),
    ],
)
def test_a_setting_moves_the_addresses_of_what_depends_on_it_and_no_other(override, changed):
    before, after = (addresses(load_config([CONF / "demo.yaml"], extra)) for extra in ([], [override]))
    assert tuple(a != b for a, b in zip(before, after, strict=True)) == changed


def test_renaming_a_feature_set_moves_no_trial():
    base = load_config([CONF / "demo.yaml"])
    renamed = load_config([CONF / "demo.yaml"], ["features.other.depths=[1]", "trials.trial.features=other"])
    assert addresses(base)[2] == addresses(renamed)[2]


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert (
        fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1}) != fingerprint({"a": 1, "b": [2, 1]})
    )


def test_clip_settings_hold_what_changes_a_frame():
    assert set(clip_settings(load_config([CONF / "demo.yaml"]))) == {"decoder", "sampling", "size", "resize_filter"}


@pytest.mark.timeout(20)
def test_a_pipe_that_nobody_writes_to_is_refused_and_one_of_the_shell_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match=r"got a (folder|pipe or device), wanted a YAML file"):
            load_config([path])
    reader, writer = os.pipe()
    os.write(writer, b"root: here")
    os.close(writer)
    assert Path(load_config([Path(f"/dev/fd/{reader}")]).root).name == "here"
    os.close(reader)


def test_problems_of_all_kinds_are_in_one_message_and_one_that_follows_from_another_is_not(tmp_path):
    text = "{video: {sampling: {fpps: 3}}, encoder: {img_size: -1, weights: no.pt}, trials: {axes: {seed: []}}}"
    with pytest.raises(ConfigError) as caught:
        load_config([write(tmp_path, text)], ["resources.shard.workers=0"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problems in the configuration; nothing was started:"
    for key in ("video.sampling.fpps", "encoder.img_size", "encoder.weights", "trials.axes.seed", "shard.workers"):
        assert sum(key in line for line in lines) == 1


def test_what_a_file_marks_as_required_is_named_with_every_other_problem(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("video:\n  manifest: ???\n  sizes: 3\nencoder:\n  name: ???\n")
    with pytest.raises(ConfigError) as caught:
        load_config([file])
    said = str(caught.value)
    assert said.startswith("3 problems")
    assert "mine.yaml: video.manifest: required, as the file says `???`; give it: `video.manifest=PATH`. Folder" in said
    assert "encoder.name: required" in said
    assert "video.sizes: no such setting" in said
    file.write_text("video:\n  manifest: ???\n")
    assert load_config([file], [f"video.manifest={file}"]).video.manifest == str(file)


def test_splits_have_any_names_but_not_the_same_and_not_for_rendered_videos(tmp_path):
    manifest = tmp_path / "rows.csv"
    manifest.write_text("path,label,split\n")
    base = tmp_path / "mine.yaml"
    base.write_text(f"video: {{manifest: {manifest}}}\n")
    assert load_config([base], ["trials.splits={train: fit, val: rank}"]).trials.splits.used == ("fit", "rank")
    with pytest.raises(ConfigError, match="got train, train; wanted different splits"):
        load_config([base], ["trials.splits.val=train"])
    with pytest.raises(ConfigError, match="rendered videos have the splits train and val only"):
        load_config([base], ["video.manifest=null", "trials.splits.test=test"])


def test_a_root_in_the_folder_of_videos_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"video: {{manifest: {tmp_path}}}\nroot: {tmp_path / 'runs'}\n")
    with pytest.raises(ConfigError, match="which is inside the folder of videos"):
        load_config([tmp_path / "mine.yaml"])


def test_names_of_splits_move_trials_only_where_they_are_not_the_usual_ones():
    config = load_config([ROOT / "conf/demo.yaml"])
    usual = trial_settings(config, config.trials.trial, "features", "val/top1", "max")
    assert "splits" not in usual
    tested = replace(config, trials=replace(config.trials, splits=SplitNames(test="test")))
    assert usual != trial_settings(tested, config.trials.trial, "features", "val/top1", "max")
    assert "splits" not in sweep_settings(config, {})


def test_settings_of_feeds_adaptations_and_views_move_no_address_at_their_defaults():
    config = load_config([ROOT / "conf/merge_sweep.yaml"])
    features = fingerprint(feature_settings(config, next(iter(config.features.values())), "shards", "weights"))
    trial = fingerprint(trial_settings(config, config.trials.trial, features, "val/top1", "max"))
    # Of the last version without these settings.
    assert (features, trial) == ("f9dace695ec1a855", "dc407c2bd50dd509")
    assert fingerprint(sweep_settings(config, {})) == "a8658c46bc09f6b2"
