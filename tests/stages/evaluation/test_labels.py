"""Labels of a manifest and classes of a classifier meet by name."""

import pytest

from vidflow.errors import ConfigError
from vidflow.stages.evaluation.labels import match_labels, read_class_names


def test_a_shuffled_list_of_classes_gives_every_label_its_own_logit():
    for names in (["run", "jump", "swim"], ["swim", "run", "jump"]):
        found = match_labels(["jump", "run"], {"class": names}, model="m")
        assert {label: names[index] for label, index in found["class"].items()} == {"jump": "jump", "run": "run"}


def test_a_label_that_is_no_class_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"(?s)1 of 2 labels.*'air_drumming'; nearest: 'air drumming'"):
        match_labels(["abseiling", "air_drumming"], {"class": ["abseiling", "air drumming"]}, model="vivit")


def test_a_label_of_a_verb_and_a_noun_is_cut_between_the_words_of_either():
    heads = {"verb": ["cut", "turn on"], "noun": ["onion", "on light", "light switch"]}
    assert match_labels(["turn on light switch"], heads, model="m") == {
        "verb": {"turn on light switch": 1},
        "noun": {"turn on light switch": 2},
    }
    with pytest.raises(ConfigError, match="no class"):
        match_labels(["cut"], heads, model="m")


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two classes of the head 'class' are named 'run'"):
        match_labels(["run"], {"class": ["run", "run"]}, model="m")


def test_class_names_come_one_per_line(tmp_path):
    (tmp_path / "verbs.txt").write_text("take\nput down\n")
    assert read_class_names({"verb": str(tmp_path / "verbs.txt")}) == {"verb": ("take", "put down")}
    (tmp_path / "verbs.txt").write_text("take\n\nput\n")
    with pytest.raises(ConfigError, match="empty line"):
        read_class_names({"verb": str(tmp_path / "verbs.txt")})
