"""What a sweep wants of the rows of a manifest."""

from pathlib import Path

import pytest

from vidflow.config.schema import Config, SplitNames, Trials
from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.stages.wanted_rows import check_rows


def rows(*named: tuple[str, str]) -> list[VideoItem]:
    return [VideoItem(path=Path(f"/{n}.mp4"), label=label, split=split) for n, (label, split) in enumerate(named)]


def problem_of(*named: tuple[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_rows(Config(), rows(*named), [])
    return str(caught.value)


def test_a_split_that_is_train_or_val_but_for_case_is_refused():
    good = [("a", "train"), ("b", "val")]
    check_rows(Config(), rows(*good, ("a", "test"), ("a", "Test")), [])
    assert "2 rows are of split 'Train'; wanted 'train', as in trials.splits" in problem_of(
        *good, *[("a", "Train")] * 2
    )
    assert "1 rows are of split 'VAL'; wanted 'val', as in trials.splits" in problem_of(*good, ("b", "VAL"))


def test_one_label_is_too_few_for_classification():
    assert "only one label, 'a'; classification needs at least 2" in problem_of(("a", "train"), ("a", "val"))


def test_the_names_of_the_splits_are_settings_and_a_missing_one_is_told_from_those_there():
    config = Config(trials=Trials(splits=SplitNames(train="fit", val="rank", test="last")))
    check_rows(config, rows(("a", "fit"), ("b", "rank"), ("a", "last"), ("", "train")), [])
    with pytest.raises(ConfigError) as caught:
        check_rows(config, rows(("a", "fit"), ("b", "Rank")), [])
    said = str(caught.value)
    assert "no row of split 'rank'; got 'fit' (1 rows), 'Rank' (1 rows); wanted it as trials.splits.val" in said
    assert "or set trials.splits.val=Rank" in said
    assert "no row of split 'last'" in said
