"""Every kind of file below a root is damaged in every way, and `vidflow verify` finds it."""

import os
import random
import shutil
from pathlib import Path

import pytest

from vidflow.files import file_sha256
from vidflow.records import EpochResult
from vidflow.stages.findings import Verified
from vidflow.stages.root_files import RootFiles
from vidflow.stages.verify import repair, verify_root
from vidflow.store.layout import FileEntry, publish_entry, publish_json, read_sealed
from vidflow.training.snapshot import Snapshot, TrialIdentity, find_damage, read_tensors, write_snapshot

# Every kind of file of an experiment, as a pattern of which the first match is damaged.
KINDS = [
    "videos/*/manifest.json",
    "videos/*/manifest.csv",
    "videos/*/*.mp4",
    "index/*.parquet",
    "index/*.parquet.json",
    *(f"{stage}/*/{name}" for stage in ("shards", "features") for name in (
        "manifest.json", "clips.parquet", "clips.parquet.json", "rejects.parquet", "rejects.parquet.json",
    )),
    "shards/*/*.tar",
    "shards/*/*.tar.json",
    "features/*/*.arrow",
    "features/*/*.arrow.json",
    "trials/*/result.json",
    "trials/*/best.safetensors",
    "trials/*/predictions.safetensors",
    "trials/*/last.safetensors",
    "initial/*.safetensors",
    "sweeps/*/manifest.json",
    "sweeps/*/plan.json",
    "plans/*/plan.json",
    "reports/*/manifest.json",
    "reports/*/report.html",
    "reports/*/trials.csv",
    "evaluations/*/*.npz",
    "evaluations/*/*.npz.json",
    "evaluations/*/report.html",
    "heads/*/config.json",
    "journal/*/*.json",
]  # fmt: skip
# Of these the loss leaves an unfinished stage or nothing at all, which nobody can tell from one that was never made.
NOT_MISSED = {
    "videos/*/manifest.json": "unfinished",
    "shards/*/manifest.json": "unfinished",
    "features/*/manifest.json": "unfinished",
    "sweeps/*/manifest.json": "unfinished",
    "reports/*/manifest.json": "unfinished",
    "evaluations/*/*.npz.json": "unfinished",
    "sweeps/*/plan.json": None,
    "plans/*/plan.json": None,
    "trials/*/last.safetensors": None,
    "initial/*.safetensors": None,
    "journal/*/*.json": None,
}
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def whole(finished_experiment, tmp_path_factory) -> Path:
    """A copy of a finished root, with the files that only other commands make."""
    root = tmp_path_factory.mktemp("whole") / "root"
    shutil.copytree(finished_experiment.root, root, ignore=shutil.ignore_patterns("mlartifacts"))
    (trial,) = list(root.glob("trials/*/"))[:1]
    _, metadata = read_tensors(trial / "best.safetensors")
    (root / "initial").mkdir()
    shutil.copy(trial / "best.safetensors", root / "initial" / f"{KEY}{KEY}.safetensors")
    epochs = (EpochResult(epoch=1, metrics={"val/top1": 0.5}, is_best=False),)
    identity = TrialIdentity(**metadata["identity"])
    write_snapshot(root / "trials" / KEY, Snapshot(identity=identity, history=epochs, model={}, optimizer={}))
    for place in (next(root.glob("sweeps/*/")) / "plan.json", root / "plans" / KEY / "plan.json"):
        publish_json(place, {"stages": {}})
    publish_json(root / "journal" / KEY / "00000000.json", {"store": "", "record": {"kind": "metric", "value": 1}})
    point = root / "evaluations" / KEY
    point.mkdir(parents=True)
    (point / "shard-000000.npz").write_bytes(bytes(range(256)))
    publish_entry(point.parent, entry_of(point / "shard-000000.npz", f"{KEY}/shard-000000.npz"))
    for folder, names in (
        (point.with_name(KEY[::-1]), ["report.html", "points.csv"]),
        (root / "heads" / KEY, ["config.json"]),
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text('{"a": 1}' * 40)
        rows = [{"file": name, "num_bytes": 320, "sha256": file_sha256(folder / name)} for name in names]
        publish_json(folder / "manifest.json", {"files": rows})
    assert look(root).findings == [] or not look(root).broken
    return root


def entry_of(path: Path, name: str) -> FileEntry:
    return FileEntry(
        file=name,
        num_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        num_clips=1,
        seconds=0.0,
        rejects=[],
        details={},
    )


@pytest.fixture
def root(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "root", copy_function=os.link)


def look(root: Path) -> Verified:
    return verify_root(root, find_damage)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    renew(path, bytes(data))


def renew(path: Path, data: bytes) -> None:
    """Write other bytes in place of a file that may be a hard link."""
    path.unlink()
    path.write_bytes(data)


def cut(path: Path) -> None:
    renew(path, path.read_bytes()[:-3])  # the last byte of a JSON file is only the end of a line


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    outside = path.parents[3] / "outside" if path.parent.parent.name != "root" else path.parents[2] / "outside"
    outside.mkdir(exist_ok=True)
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


def first(root: Path, kind: str) -> Path:
    """The first file of a kind; of a trial, of one that is over unless only the other one has such a file."""
    found = sorted(root.glob(kind))
    return next((path for path in found if KEY not in path.parts), found[0])


def found_at(verified: Verified, path: Path) -> set[str]:
    """The levels of the findings about a file: at it, at its folder, or at what describes it."""
    about = {path, path.parent, Path(f"{path}.json"), Path(str(path).removesuffix(".json"))}
    return {each.level for each in verified.findings if each.path in about}


def test_a_whole_root_is_sound_and_every_file_is_accounted_for(whole):
    verified = look(whole)
    assert [each.level for each in verified.findings] == ["unfinished"], "the trial that is not over"
    files = RootFiles(whole)
    assert "unknown" not in files.roles.values()
    assert verified.num_sized == 0
    assert verified.num_files + sum(verified.unchecked.values()) == len(files.files)
    assert set(verified.unchecked) == {
        "the root's lock", "MLflow's, which keeps no digests", "Ray Tune's, which are not read again",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_is_found_in_every_kind_of_file(root, kind):
    path = first(root, kind)
    flip(path)
    verified = look(root)
    assert "broken" in found_at(verified, path)
    (finding,) = verified.broken
    assert finding.removes[0] == path or path in finding.removes


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone_is_missed(root, kind):
    path = first(root, kind)
    path.unlink()
    level = NOT_MISSED.get(kind, "broken")
    verified = look(root)
    assert bool(verified.broken) == (level == "broken"), verified.findings
    assert level is None or level in found_at(verified, path)


@pytest.mark.parametrize("damage", [cut, replace_by_folder, replace_by_link])
def test_a_file_that_is_cut_or_something_else_is_found_in_every_kind(root, damage):
    chosen = [
        "videos/*/*.mp4", "index/*.parquet.json", "shards/*/*.tar", "shards/*/*.tar.json", "features/*/clips.parquet",
        "trials/*/best.safetensors", "reports/*/manifest.json", "plans/*/plan.json",
    ]  # fmt: skip
    paths = [first(root, kind) for kind in chosen]
    for path in paths:
        damage(path)
    verified = look(root)
    for path in paths:
        assert "broken" in found_at(verified, path), path


@pytest.mark.parametrize(
    ("kind", "rows"),
    [("shards/*/manifest.json", "files"), ("shards/*/manifest.json", "tables"), ("trials/*/result.json", "files")],
)
@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "", "a/b"])
def test_a_manifest_that_names_a_file_elsewhere_is_broken_and_repair_deletes_nothing_there(root, kind, rows, name):
    outside = root.parent / "x"
    outside.write_text("mine")
    path = first(root, kind)
    value = read_sealed(path)
    value[rows][0] = name if rows == "tables" else {**value[rows][0], "file": name}
    path.unlink()
    publish_json(path, value)
    verified = look(root)
    assert [each.path for each in verified.broken] == [path]
    assert "is not a file in its folder" in verified.broken[0].problem
    assert all(each.is_relative_to(root) for each in list(repair(verified, find_damage)))
    assert outside.read_text() == "mine"
    assert Path("/etc/passwd").exists()
    assert not look(root).broken


def test_an_entry_that_describes_another_file_is_broken(root):
    path = first(root, "shards/*/*.tar.json")
    value = read_sealed(path)
    path.unlink()
    publish_json(path, {**value, "file": "../../x.tar"})
    assert "it describes '../../x.tar'" in look(root).broken[0].problem


def test_shards_in_the_folder_of_other_settings_are_broken_and_go_as_a_whole(root):
    folder = next(root.glob("shards/*/"))
    shutil.copytree(folder, folder.with_name(KEY))
    verified = look(root)
    assert [each.path for each in verified.broken] == [folder.with_name(KEY) / "manifest.json"]
    assert list(repair(verified, find_damage))
    assert not folder.with_name(KEY).exists()
    assert folder.exists()


def test_repair_deletes_what_is_broken_with_the_manifests_that_list_it_and_nothing_else(root):
    tar, arrow, best = (first(root, f"{kind}") for kind in ("shards/*/*.tar", "features/*/*.arrow", "trials/*/best.*"))
    for path in (tar, arrow, best):
        flip(path)
    left = tar.with_name(".shard-000009.tar.0123abcd.tmp")
    left.write_text("x")
    (root / "notes.txt").write_text("the user's own")
    (merged := best.with_name("merged.safetensors")).write_bytes(b"the user's own")
    before = set(RootFiles(root).files)
    verified = look(root)
    assert {each.path: each.level for each in verified.findings if each.level in ("leftover", "unknown")} == {
        left: "leftover",
        root / "notes.txt": "unknown",
        merged: "unknown",
    }
    deleted = list(repair(verified, find_damage))
    assert set(deleted) == before - set(RootFiles(root).files)
    (sweep,) = root.glob("sweeps/*/")
    lists = {tar.with_name("manifest.json"), arrow.with_name("manifest.json"), sweep / "manifest.json"}
    beside = {Path(f"{tar}.json"), Path(f"{arrow}.json"), best.with_name("result.json")}
    assert set(deleted) == {tar, arrow, best, left, *lists, *beside}
    assert set(deleted[:4]) == {tar, arrow, best, left}, "damaged bytes go first, as nothing may trust them"
    assert not look(root).broken


def test_what_is_behind_a_link_is_not_checked_and_not_deleted(root, tmp_path):
    trials = (root / "trials").rename(tmp_path / "elsewhere")
    (root / "trials").symlink_to(trials)
    flip(first(root, "features/*/*.arrow"))
    flip(first(tmp_path, "elsewhere/*/best.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in trials.rglob("*")}
    verified = look(root)
    assert verified.unchecked["behind the link trials, which is not followed"] == 1
    assert [each.path.suffix for each in verified.broken] == [".arrow"]
    list(repair(verified, find_damage))
    assert {path: path.stat().st_mtime_ns for path in trials.rglob("*")} == before


def test_shards_that_features_were_made_from_are_half_deleted_without_their_manifest(root):
    manifest = first(root, "shards/*/manifest.json")
    manifest.unlink()
    found = {each.path: each.problem for each in look(root).findings if each.level == "unfinished"}
    assert "half deleted, as features" in found[manifest.parent]
    shutil.rmtree(manifest.parent)
    verified = look(root)
    assert not verified.broken
    assert any("gone, but features" in each.problem for each in verified.findings)


def test_what_another_command_replaces_meanwhile_is_not_called_broken(root):
    tar = first(root, "shards/*/*.tar")
    data = tar.read_bytes()
    flip(tar)
    assert look(root).broken
    read = []

    def replace_at_the_end(num_done: int, *, num_rejects: int = 0) -> None:
        read.append(num_done)
        if sum(read) == num_bytes[0]:
            renew(tar, data)

    num_bytes = []
    verified = verify_root(root, find_damage, start=lambda number: num_bytes.append(number) or replace_at_the_end)
    assert not verified.broken


def test_the_command_prints_what_where_why_and_what_to_do(here, root, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert here("verify", root).returncode == 0
    tar = first(root, "shards/*/*.tar")
    flip(tar)
    done = here("verify", root)
    assert done.returncode == 1
    row = f"  {tar.relative_to(root)}  its bytes are not those that were written  vidflow shard"
    assert row in done.stdout.splitlines()
    assert f"vidflow verify {root} --repair" in done.stderr
    assert "MLflow's, which keeps no digests" in done.stdout
    repaired = here("verify", root, "--repair")
    assert repaired.returncode == 0
    assert "3 files deleted; next: `vidflow run`" in repaired.stderr
    assert here("verify", root).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_after_repair_the_next_run_makes_exactly_the_missing_pieces_again_with_the_same_bytes(vidflow, copied_config):
    root = copied_config.with_name("root")
    suffixes = (".mp4", ".tar", ".arrow", ".parquet", ".safetensors")
    made = [path for path in RootFiles(root).files if path.suffix in suffixes and path.parent.name != "index"]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in made}
    for kind in (
        "videos/*/*.mp4",
        "shards/*/*.tar",
        "features/*/*.arrow",
        "features/*/clips.parquet",
        "trials/*/best.*",
    ):
        flip(first(root, kind))
    flip(first(root, "shards/*/rejects.parquet.json"))
    flip(first(root, "reports/*/report.html"))
    sorted(root.glob("shards/*/*.tar"))[1].unlink()
    sorted(root.glob("features/*/*.arrow.json"))[1].unlink()
    damaged = {path for path in made if not path.exists() or path.read_bytes() != before[path][0]}
    assert vidflow("verify", root).returncode == 1
    repaired = vidflow("verify", root, "--repair")
    assert repaired.returncode == 0, repaired.stderr
    kept = {path for path in made if path.exists()}
    done = vidflow("run", copied_config)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in made} == {path: data for path, (data, _) in before.items()}
    again = {path for path in made if path.stat().st_mtime_ns != before[path][1] and path in kept}
    # A trial is trained again as a whole, and the end of a stage writes its tables.
    assert {path.suffix for path in again} <= {".safetensors", ".parquet"}
    assert damaged
    assert vidflow("verify", copied_config, "--deep", 3).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_root_of_which_half_the_files_are_deleted_is_made_whole_by_the_next_run(vidflow, copied_config):
    root = copied_config.with_name("root")
    files = [path for path, role in RootFiles(root).roles.items() if role in ("list", "made", "weights")]
    before = {path: path.read_bytes() for path in files if path.suffix in (".mp4", ".tar", ".arrow", ".safetensors")}
    for path in random.Random(0).sample(files, len(files) // 2):
        path.unlink()
    assert vidflow("verify", root).returncode == 1
    done = vidflow("run", copied_config)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    found = vidflow("verify", root)
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, replace_by_folder, replace_by_link])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_damage_is_found_in_every_kind_of_file(root, kind, damage):
    path = first(root, kind)
    damage(path)
    assert "broken" in found_at(look(root), path)
