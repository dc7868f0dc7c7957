"""Published annotation formats, on small files written the way the publishers write them."""

import json
import os

import pytest

from vidflow.errors import ConfigError
from vidflow.video.datasets import adapt
from vidflow.video.manifest import read_manifest, write_manifest

EPIC_COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


@pytest.fixture
def annotations(tmp_path):
    (tmp_path / "annotations").mkdir()
    return tmp_path / "annotations"


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def _place(videos, *names):
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()


def _rows(items, videos):
    return [(str(item.path.relative_to(videos)), item.label, item.split) for item in items]


def test_kinetics(annotations, videos):
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    (annotations / "train.csv").write_text(
        header + 'abseiling,-3B32lodo2M,59,69,train,0\n"air drumming",_dbcJ,0,10,train,0\n'
    )
    (annotations / "validate.csv").write_text(header + "abseiling,zZz,104,114,validate,0\n")
    (annotations / "test.csv").write_text("youtube_id,time_start,time_end,split\nabc,1,11,test\n")
    _place(videos, "abseiling/-3B32lodo2M_000059_000069.mp4", "val/zZz_000104_000114.mkv")
    items = adapt("kinetics", annotations=annotations, videos=videos)
    assert _rows(items, videos) == [
        ("abc_000001_000011.mp4", "", "test"),
        ("abseiling/-3B32lodo2M_000059_000069.mp4", "abseiling", "train"),
        ("_dbcJ_000000_000010.mp4", "air drumming", "train"),
        ("val/zZz_000104_000114.mkv", "abseiling", "val"),
    ]
    assert all(item.start_seconds is None for item in items)  # the clips are cut already


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_something_something_v2(annotations, videos, prefix):
    label = "Holding something next to something"
    (annotations / f"{prefix}labels.json").write_text(json.dumps({label: "0", "Opening something": "1"}))
    row = {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    }
    (annotations / f"{prefix}train.json").write_text(json.dumps([row]))
    other = {"id": "74225", "label": "opening jar", "template": "Opening [something]", "placeholders": ["jar"]}
    (annotations / f"{prefix}validation.json").write_text(json.dumps([other]))
    _place(videos, "78687.webm", "74225.webm")
    items = adapt("ssv2", annotations=annotations, videos=videos)
    assert _rows(items, videos) == [("78687.webm", label, "train"), ("74225.webm", "Opening something", "val")]


def _write_epic(annotations):
    (annotations / "EPIC_100_verb_classes.csv").write_text(
        "id,key,instances,category\n0,take,\"['take', 'grab']\",a\n3,open,['open'],b\n"
    )
    (annotations / "EPIC_100_noun_classes.csv").write_text(
        "id,key,instances,category\n2,plate,['plate'],a\n3,door,['door'],b\n"
    )
    train = "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    val = "P22_107_1,P22,P22_107,01:02:03.000,01:02:03.50,01:02:04.00,1,2,take plate,take,0,plate,2,['plate'],[2]\n"
    (annotations / "EPIC_100_train.csv").write_text(f"{EPIC_COLUMNS}\n{train}")
    (annotations / "EPIC_100_validation.csv").write_text(f"{EPIC_COLUMNS}\n{val}")


def test_epic_kitchens_100_gives_parts_of_long_videos(annotations, videos):
    _write_epic(annotations)
    _place(videos, "P01/videos/P01_01.MP4")
    items = adapt("epic_kitchens_100", annotations=annotations, videos=videos)
    assert _rows(items, videos) == [
        ("P01/videos/P01_01.MP4", "open door", "train"),
        ("P22_107.MP4", "take plate", "val"),
    ]
    assert [(item.start_seconds, item.end_seconds) for item in items] == [(0.14, 3.37), (3723.5, 3724.0)]


@pytest.mark.parametrize(("epic_label", "labels"), [("verb", ["open", "take"]), ("noun", ["door", "plate"])])
def test_epic_kitchens_100_can_be_labelled_by_verb_or_noun(annotations, videos, epic_label, labels):
    _write_epic(annotations)
    items = adapt("epic_kitchens_100", annotations=annotations, videos=videos, epic_label=epic_label)
    assert [item.label for item in items] == labels


def test_ucf101(annotations, videos):
    (annotations / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
    (annotations / "trainlist02.txt").write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n")
    (annotations / "testlist02.txt").write_text("HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n")
    _place(videos, "v_ApplyEyeMakeup_g08_c01.avi", "HandstandPushups/v_HandStandPushups_g01_c01.avi")
    items = adapt("ucf101", annotations=annotations, videos=videos, fold=2)
    assert _rows(items, videos) == [
        ("v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup", "train"),
        ("HandstandPushups/v_HandStandPushups_g01_c01.avi", "HandstandPushups", "val"),
    ]


def test_hmdb51(annotations, videos):
    lines = "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \na_b#1.avi 2 \nunused.avi 0 \n"
    (annotations / "brush_hair_test_split1.txt").write_text(lines)
    (annotations / "wave_test_split1.txt").write_text("w.avi 1 \n")
    (annotations / "wave_test_split2.txt").write_text("other_fold.avi 1 \n")
    items = adapt("hmdb51", annotations=annotations, videos=videos)
    assert _rows(items, videos) == [
        ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "brush_hair", "train"),
        ("brush_hair/a_b#1.avi", "brush_hair", "val"),
        ("wave/w.avi", "wave", "train"),
    ]


def test_rows_survive_the_manifest(annotations, videos, tmp_path):
    _write_epic(annotations)
    items = adapt("epic_kitchens_100", annotations=annotations, videos=videos)
    write_manifest(tmp_path / "epic.csv", items)
    assert read_manifest(tmp_path / "epic.csv") == (items, [])


@pytest.mark.parametrize("dataset", ["kinetics", "ssv2", "epic_kitchens_100", "ucf101", "hmdb51", "perception_test"])
def test_missing_annotation_files_are_named(annotations, videos, dataset):
    with pytest.raises(ConfigError, match=f"{annotations}.*wanted"):
        adapt(dataset, annotations=annotations, videos=videos)


def test_a_missing_video_folder_is_named(annotations, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        adapt("hmdb51", annotations=annotations, videos=tmp_path / "none")


@pytest.mark.parametrize(
    ("dataset", "files", "complaint"),
    [
        ("kinetics", {"t.csv": "label,youtube_id\na,b\n"}, "t.csv: .*'time_start' is missing"),
        ("kinetics", {"t.csv": "youtube_id,time_start,time_end,split\na,x,2,train\n"}, "t.csv: .*'x'"),
        ("kinetics", {"t.csv": "youtube_id,time_start,time_end,split\na,1,2,dev\n"}, "'dev' is missing"),
        ("kinetics", {"t.csv": "youtube_id,time_start,time_end,split\na,inf,2,train\n"}, "t.csv: .*infinity"),
        ("kinetics", {"t.csv": "youtube_id\n" + "a" * 200_000}, "t.csv: .*field limit"),
        ("ssv2", {"labels.json": "[" * 100_000}, "labels.json: not in its published format"),
        ("ssv2", {"labels.json": "{nonsense"}, "labels.json: not in its published format"),
        ("ssv2", {"labels.json": "{}", "train.json": '[{"id": "1", "template": "X [y]"}]'}, "the class 'X y'"),
        ("ucf101", {"classInd.txt": "1 A\n", "trainlist01.txt": "B/v.avi 1\n"}, "the class 'B'"),
        ("hmdb51", {"wave_test_split1.txt": "a.avi 3\n"}, "'3' is missing"),
        ("hmdb51", {"wave_test_split1.txt": "a.avi\n"}, "wanted 2 words"),
    ],
)
def test_a_file_in_another_format_is_named_with_the_reason(annotations, videos, dataset, files, complaint):
    for name, content in files.items():
        (annotations / name).write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        adapt(dataset, annotations=annotations, videos=videos)


def test_a_pipe_in_place_of_a_published_file_is_refused_at_once(annotations, videos):
    os.mkfifo(annotations / "train.csv")
    with pytest.raises(ConfigError, match=r"train\.csv: not a regular file"):
        adapt("kinetics", annotations=annotations, videos=videos)


@pytest.mark.parametrize("stop", ["00:00:nan", "00:00:inf", "00:00:-1"])
def test_moments_that_are_no_times_are_refused(annotations, videos, stop):
    for kind in ("verb", "noun"):
        (annotations / f"EPIC_100_{kind}_classes.csv").write_text("id,key\n0,take\n")
    (annotations / "EPIC_100_train.csv").write_text(
        f"video_id,start_timestamp,stop_timestamp,verb_class,noun_class\nP01,00:00:00.10,{stop},0,0\n"
    )
    with pytest.raises(ConfigError, match=r"got the time '00:.*', wanted HH:MM:SS\.ss"):
        adapt("epic_kitchens_100", annotations=annotations, videos=videos)
