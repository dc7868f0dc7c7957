from dataclasses import replace

from vidflow.report.sources import name_sources
from vidflow.stages.clips import ChosenClip, ShardUnit


def clip(key: str, path: str, start: float = 0.0) -> ChosenClip:
    return ChosenClip(
        key=key,
        path=path,
        sha256="",
        label="",
        label_index=-1,
        split="val",
        times=(start, start + 1.5),
        annotations="",
        annotations_sha256="",
        stamps={},
    )


def test_a_clip_is_named_by_its_video_below_the_folder_that_all_share_and_by_its_seconds_if_there_are_several() -> None:
    clips = (clip("a", "/my/val/jump/1.mp4"), clip("b", "/my/train/run/2.mp4"), clip("c", "/my/train/run/2.mp4", 4))
    assert name_sources([ShardUnit(file="s", clips=clips)]) == {
        "a": "val/jump/1.mp4",
        "b": "train/run/2.mp4, 0.0 to 1.5 s",
        "c": "train/run/2.mp4, 4.0 to 5.5 s",
    }
    assert name_sources([ShardUnit(file="s", clips=clips[:1])]) == {"a": "1.mp4"}
    assert name_sources([]) == {}


def test_of_three_squares_a_name_says_which() -> None:
    clips = tuple(replace(clip(crop, "/my/1.mp4"), crop=crop) for crop in ("center", "left"))
    names = {"center": "1.mp4, 0.0 to 1.5 s, center", "left": "1.mp4, 0.0 to 1.5 s, left"}
    assert name_sources([ShardUnit(file="s", clips=clips)]) == names
