"""Where an experiment lies and what is there, by its files; made in this process, without Ray."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from test_shard import ENCODING

from vidflow.config.schema import Config, Encoder, Resources, Sampling, Trial, Video
from vidflow.errors import VidflowError
from vidflow.records import Reject
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import finish_stage
from vidflow.stages.scan import VideoScanner
from vidflow.stages.shard import ShardBuilder
from vidflow.stages.shard_work import edition_of
from vidflow.store.layout import publish_json, read_json
from vidflow.video.ffmpeg import write_h264


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """An experiment on two videos that nothing has been made of."""
    for number, name in enumerate(("a.mp4", "b.mp4")):
        write_h264(tmp_path / name, np.full((8, 32, 32, 3), 90 * number, np.uint8), fps=8)
    (tmp_path / "manifest.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,y,val\n")
    return Config(
        root=str(tmp_path / "root"),
        video=Video(manifest=str(tmp_path / "manifest.csv"), sampling=Sampling(num_frames=4), size=32),
        encoder=Encoder(name="test_vit", weights="random:0", img_size=32),
    )


def scan(experiment: Experiment) -> None:
    experiment.index.add(VideoScanner(**asdict(experiment.limits))(experiment.list_unscanned()))
    experiment.published("scan")


def make_shards(experiment: Experiment) -> None:
    work = experiment.scanned_shards
    build = ShardBuilder(directory=work.address.directory, **asdict(experiment.limits), **ENCODING)
    entries = [build(unit) for unit in work.units]
    rejects = [Reject(**row) for entry in entries for row in entry.rejects]
    finish_stage(
        replace(work.address, edition=edition_of(rejects)),
        stage="shard",
        entries=entries,
        clips=[],
        rejects=rejects,
        wall_seconds=0.0,
        build_rejects=[asdict(reject) for reject in rejects],
    )
    experiment.published("shard")


def test_a_recommended_command_has_the_users_words_but_no_password(config):
    words = ["my conf.yaml", "tracking.uri=http://me:hunter2@host:5000"]
    said = Experiment(config, words).command("rejects list")
    assert said == "vidflow rejects list 'my conf.yaml' tracking.uri=http://host:5000"


def test_shards_are_known_once_every_video_is_scanned_and_no_longer_when_one_changes(config):
    experiment = Experiment(config)
    assert experiment.shards is None
    with pytest.raises(VidflowError, match="changed while this command was at work"):
        _ = experiment.features
    scan(experiment)
    assert experiment.shards is not None
    with Path(config.video.manifest).with_name("a.mp4").open("ab") as video:
        video.write(bytes(16))
    assert experiment.shards is not None, "it was read anew, though nothing was published"
    assert Experiment(config).shards is None


def test_a_publication_is_forgotten_with_what_lies_behind_it_and_nothing_before_it(config):
    experiment = Experiment(config)
    scan(experiment)
    before = {name: getattr(experiment, name) for name in ("rows", "index", "shards", "features", "sweep", "report")}
    assert experiment.manifest(experiment.scanned_shards.address) is None
    make_shards(experiment)
    kept = {name for name, value in before.items() if getattr(experiment, name) is value}
    assert kept == {"rows", "index"}
    assert experiment.manifest(experiment.scanned_shards.address) is not None
    experiment.published("report")
    assert experiment.sweep is experiment.sweep


def test_what_another_process_published_is_seen_under_the_lock(config):
    ours, other = Experiment(config), Experiment(config)
    scan(ours)
    address = ours.scanned_shards.address
    assert ours.manifest(address) is None
    make_shards(other)
    assert ours.manifest(address) is None
    with ours.exclusive():
        assert ours.manifest(address) == other.manifest(address)
        assert ours.finished(address).num_files == 1


def test_a_clip_that_is_left_out_for_now_makes_another_edition_of_all_that_rests_on_it(config):
    whole = Experiment(config)
    short = Experiment(replace(config, resources=Resources(decode_timeout_seconds=1e-6)))
    scan(whole)
    make_shards(whole)
    features, trial, sweep = whole.features["base"], whole.trial(Trial()), whole.sweep
    assert features.identity == features.fingerprint
    make_shards(short)
    assert short.finished(short.scanned_shards.address).num_rejects == 2
    assert short.features["base"].directory == features.directory
    assert short.features["base"].identity != features.identity
    assert short.trial(Trial()).fingerprint != trial.fingerprint
    assert short.sweep.fingerprint != sweep.fingerprint
    # With more time the clips are due: the shards without them are not the ones wanted.
    again = Experiment(config)
    assert again.manifest(again.scanned_shards.address) is None
    assert again.sweep == sweep


def test_a_manifest_of_another_version_counts_as_not_there(config):
    experiment = Experiment(config)
    scan(experiment)
    make_shards(experiment)
    address = experiment.scanned_shards.address
    path = address.directory / "manifest.json"
    assert experiment.manifest(address) is not None
    publish_json(path, {**read_json(path), "seconds": 1.0})
    assert Experiment(config).manifest(address) is None
    assert path.exists()
