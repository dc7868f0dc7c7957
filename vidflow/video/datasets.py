"""Convert the annotation files of published data sets to rows of a manifest."""

import csv
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, assert_never

from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.video.perception_tracks import perception_test
from vidflow.video.published import SPLITS, Videos, published_format

Dataset = Literal["kinetics", "ssv2", "epic_kitchens_100", "ucf101", "hmdb51", "perception_test"]
EpicLabel = Literal["verb", "noun", "action"]


def adapt(
    dataset: Dataset,
    *,
    annotations: Path,
    videos: Path,
    fold: int = 1,
    epic_label: EpicLabel = "action",
    tracks: Path | None = None,
    box_gap_seconds: float = 0.0,
) -> list[VideoItem]:
    """Return the rows of a published data set, for `write_manifest`.

    Videos are found by name, anywhere below `videos`. A missing video keeps its published name, and scanning
    reports it later. The splits are `train`, `val` and `test`. UCF101 and HMDB51 have only two lists; their test
    list becomes `val`.

    Args:
        dataset: Name of the data set.
        annotations: Folder of the annotation files, under their published names; for Kinetics it may be one of them.
        videos: Folder of the videos.
        fold: Which of the three splits, from 1, for UCF101 and HMDB51.
        epic_label: Label of the rows of EPIC-KITCHENS-100.
        tracks: Output folder for the boxes and points of Perception Test, one `.npz` per video; None: the folder
            `tracks` in `annotations`.
        box_gap_seconds: Longest time between two boxes of Perception Test across which boxes are interpolated. The
            published boxes are about one second apart. With 0 the frames in between have no box, so a clip at a
            lower frame rate than its video may have none at all.

    Raises:
        ConfigError: If an annotation file is missing or not in the published format.
    """
    found = Videos(videos)
    match dataset:
        case "kinetics":
            return list(_kinetics(annotations, found))
        case "ssv2":
            return list(_ssv2(annotations, found))
        case "epic_kitchens_100":
            return list(_epic_kitchens_100(annotations, found, epic_label))
        case "ucf101":
            return list(_ucf101(annotations, found, fold))
        case "hmdb51":
            return list(_hmdb51(annotations, found, fold))
        case "perception_test":
            folder = annotations / "tracks" if tracks is None else tracks
            return list(perception_test(annotations, found, folder, box_gap_seconds=box_gap_seconds))
        case _:
            assert_never(dataset)


def _read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened, restval=""))


def _kinetics(annotations: Path, videos: Videos) -> Iterator[VideoItem]:
    """Yield the rows of every CSV in the folder, because the names of the lists differ between releases; or of one CSV.

    Source: Kay et al. 2017, The Kinetics Human Action Video Dataset, and the files of its release, with the columns
    label (not in every test list), youtube_id, time_start, time_end (seconds), split, is_cc. A video file holds only
    that span. The official crawler names it by id, start and end, in whole seconds of six digits each.
    """
    files = [annotations] if annotations.is_file() else sorted(annotations.glob("*.csv"))
    if not files:
        raise ConfigError(f"{annotations}: got no *.csv; wanted the lists of Kinetics, such as train.csv and val.csv")
    for file in files:
        with published_format(file):
            for row in _read_csv(file):
                start, end = int(float(row["time_start"])), int(float(row["time_end"]))
                yield VideoItem(
                    path=videos.find(f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"),
                    label=row.get("label", ""),
                    split=SPLITS[row["split"]],
                )


def _ssv2(annotations: Path, videos: Videos) -> Iterator[VideoItem]:
    """Yield the rows of the training and validation lists; the test list has no labels.

    Source: Goyal et al. 2017, The "something something" video database, and the release of version 2:
    `something-something-v2-{labels,train,validation}.json`, later without the prefix. A row's `template` is its
    class with the placeholders in brackets; the list of labels has no brackets. Videos are `ID.webm`.
    """
    long_name = annotations / "something-something-v2-labels.json"
    prefix = "something-something-v2-" if long_name.exists() else ""
    file = annotations / f"{prefix}labels.json"
    with published_format(file):
        labels = set(json.loads(file.read_text(encoding="utf-8")))
    for split in ("train", "validation"):
        file = annotations / f"{prefix}{split}.json"
        with published_format(file):
            for row in json.loads(file.read_text(encoding="utf-8")):
                label = row["template"].replace("[", "").replace("]", "")
                _require_class(label, labels)
                yield VideoItem(path=videos.find(f"{row['id']}.webm"), label=label, split=SPLITS[split])


def _epic_kitchens_100(annotations: Path, videos: Videos, epic_label: EpicLabel) -> Iterator[VideoItem]:
    """Yield the actions of the training and validation lists, each a span of a long video.

    Source: Damen et al. 2022, Rescaling Egocentric Vision, and the release's `EPIC_100_train.csv`,
    `EPIC_100_validation.csv` (video_id, start_timestamp and stop_timestamp as HH:MM:SS.ss, verb_class, noun_class),
    `EPIC_100_verb_classes.csv` and `EPIC_100_noun_classes.csv` (id, key). An action is a pair of verb and noun class.
    """
    verbs, nouns = (_read_epic_classes(annotations / f"EPIC_100_{kind}_classes.csv") for kind in ("verb", "noun"))
    for split in ("train", "validation"):
        file = annotations / f"EPIC_100_{split}.csv"
        with published_format(file):
            for row in _read_csv(file):
                verb, noun = verbs[row["verb_class"]], nouns[row["noun_class"]]
                yield VideoItem(
                    path=videos.find(f"{row['video_id']}.MP4"),
                    label={"verb": verb, "noun": noun, "action": f"{verb} {noun}"}[epic_label],
                    split=SPLITS[split],
                    start_seconds=_parse_timestamp(row["start_timestamp"]),
                    end_seconds=_parse_timestamp(row["stop_timestamp"]),
                )


def _read_epic_classes(file: Path) -> dict[str, str]:
    with published_format(file):
        return {row["id"]: row["key"] for row in _read_csv(file)}


def _parse_timestamp(text: str) -> float:
    """Return the seconds of HH:MM:SS.ss."""
    hours, minutes, seconds = text.split(":")
    if not 0 <= float(seconds) < math.inf:
        raise ValueError(f"got the time {text!r}, wanted HH:MM:SS.ss")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _ucf101(annotations: Path, videos: Videos, fold: int) -> Iterator[VideoItem]:
    """Yield the rows of one fold.

    Source: Soomro et al. 2012, UCF101, and its UCF101TrainTestSplits-RecognitionTask: `classInd.txt` (number and
    class per line), `trainlist0F.txt` (`Class/v_Class_gNN_cNN.avi` and the number) and `testlist0F.txt` (no number).
    """
    file = annotations / "classInd.txt"
    with published_format(file):
        labels = {line.split()[1] for line in _read_lines(file, num_words=2)}
    for name, split in (("trainlist", "train"), ("testlist", "val")):
        file = annotations / f"{name}{fold:02d}.txt"
        with published_format(file):
            for line in _read_lines(file):
                clip = line.split()[0]
                label = clip.split("/")[0]
                _require_class(label, labels)
                yield VideoItem(path=videos.find(clip), label=label, split=split)


def _hmdb51(annotations: Path, videos: Videos, fold: int) -> Iterator[VideoItem]:
    """Yield the rows of one fold.

    Source: Kuehne et al. 2011, HMDB, and its testTrainMulti_7030_splits: per class and fold a file
    `CLASS_test_splitF.txt` with a clip and a number on each line: 1 for training, 2 for testing, 0 for neither.
    """
    ending = f"_test_split{fold}.txt"
    files = sorted(annotations.glob(f"*{ending}"))
    if not files:
        raise ConfigError(f"{annotations}: got no *{ending}; wanted the folder testTrainMulti_7030_splits of HMDB51")
    for file in files:
        with published_format(file):
            label = file.name.removesuffix(ending)
            for line in _read_lines(file, num_words=2):
                clip, use = line.split()
                split = {"0": None, "1": "train", "2": "val"}[use]
                if split:
                    yield VideoItem(path=videos.find(f"{label}/{clip}"), label=label, split=split)


def _read_lines(file: Path, *, num_words: int | None = None) -> Iterator[str]:
    """Yield the lines that are not blank, and check their number of words."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if num_words is not None and line.strip() and len(line.split()) != num_words:
            raise ValueError(f"got the line {line!r}, wanted {num_words} words")
        if line.strip():
            yield line


def _require_class(label: str, labels: Collection[str]) -> None:
    if label not in labels:
        raise ValueError(f"got the class {label!r}, wanted one of the {len(labels)} in the list of classes")
