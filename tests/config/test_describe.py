"""Nothing that can be set goes unexplained: each setting has a meaning, each choice says what it is."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from vidflow.config.choices import MODELS
from vidflow.config.describe import describe_sections, find_settings
from vidflow.config.docstrings import first_sentence, parse_docstring, read_sources
from vidflow.config.schema import CoreName, TaskName
from vidflow.errors import ConfigError, VidflowError
from vidflow.models.reduction.build import build_reducer
from vidflow.models.reduction.places import ReducerName

ALL = [setting for section in describe_sections() for setting in section.settings]
REDUCERS = find_settings("features.x.reducer.name")[0].settings[0].choices
OWN = [(choice, setting) for choice in REDUCERS for setting in choice.settings]


def choices_of(key):
    return find_settings(key)[0].settings[0].choices


def test_every_section_and_setting_has_a_meaning():
    assert len(ALL) > 70
    assert [section.key for section in describe_sections() if not section.meaning] == []
    assert [setting.key for setting in ALL if not setting.meaning] == []
    assert [f"{choice.word}.{setting.key}" for choice, setting in OWN if not setting.meaning] == []


@pytest.mark.parametrize("setting", [s for s in ALL if "one of " in s.kind], ids=lambda setting: setting.key)
def test_every_choice_says_what_it_means_and_no_two_say_the_same(setting):
    words = setting.kind.partition("one of ")[2].removesuffix(" or null").rstrip(",").split(", ")
    assert list(dict.fromkeys(choice.word for choice in setting.choices)) == words
    assert all(choice.meaning for choice in setting.choices)
    assert len({choice.meaning for choice in setting.choices}) == len(setting.choices)


def test_every_choice_of_a_reducers_own_setting_says_what_it_means():
    silent = [
        f"{choice.word}.{setting.key}: {word.word}"
        for choice, setting in OWN
        for word in setting.choices
        if not word.meaning
    ]
    assert silent == []
    assert any(setting.choices for _, setting in OWN)


def test_the_names_that_the_models_offer_are_the_names_described():
    for key, names in (("core", CoreName), ("task", TaskName)):
        assert tuple(choice.word for choice in choices_of(f"trials.trial.{key}")) == get_args(names)
    assert tuple(dict.fromkeys(choice.word for choice in REDUCERS)) == get_args(ReducerName)


@pytest.mark.parametrize("choice", REDUCERS[1:], ids=lambda choice: f"{choice.word} at {choice.place}")
def test_a_reducers_settings_are_those_that_it_takes(choice):
    with pytest.raises(VidflowError) as refused:
        build_reducer(choice.word, place=choice.place, no_such_setting=1)
    assert str(refused.value).endswith(f"it has {', '.join(setting.key for setting in choice.settings)}")


def test_published_methods_name_their_paper():
    controls = {"none", "pool", "fewer_frames", "lower_resolution", "random"}
    assert {choice.word for choice in REDUCERS if not choice.source} == controls
    assert {choice.word for choice in choices_of("trials.trial.core") if not choice.source} == {"identity", "mean"}
    assert all(choice.source for choice in choices_of("trials.trial.task"))


def test_a_class_or_a_choice_without_words_is_noticed(tmp_path):
    (tmp_path / "cores.py").write_text(
        'Name = Literal["a", "b"]\n'
        "class A:\n    pass\n"
        'class B:\n    """Do b. Well."""\n'
        'def build(name: Name):\n    match name:\n        case "a":\n            return A(1)\n'
        '        case "b":\n            return B(2)\n'
    )
    (tmp_path / "tasks.py").write_text(
        "from vidflow.config.tasks import Task\n"
        "SPEC = Spec(build=B, facts=facts_of())\n"
        'def spec_of(task: Task):\n    match task:\n        case "c":\n            return SPEC\n'
    )
    sources = read_sources([tmp_path / "cores.py", tmp_path / "tasks.py"])
    assert sources.built == {("Name", "a"): ["A"], ("Name", "b"): ["B"], ("Task", "c"): ["B"]}
    assert sources.classes["A"].doc.summary == ""
    assert first_sentence(sources.classes["B"].doc.summary) == "Do b."


def test_a_docstring_is_taken_apart():
    doc = parse_docstring(
        """Merge two
        tokens. More. [tokens]

        Attributes:
            first: One, on
                two lines.
            second: Two: with a colon.

        Choices:
            a: Left.

        Source: Somebody et al. 2020 (arXiv 1), section 3. Differs.
        """
    )
    assert doc.summary == "Merge two tokens. More. [tokens]"
    assert doc.attributes == {"first": "One, on two lines.", "second": "Two: with a colon."}
    assert doc.choices == {"a": "Left."}
    assert first_sentence(doc.source) == "Somebody et al. 2020 (arXiv 1), section 3."


def test_units_kinds_and_defaults_are_as_the_schema_has_them():
    setting = {setting.key: setting for setting in ALL}
    size = setting["video.synthetic.size"]
    assert (size.default, size.unit, size.kind) == ("96", "pixels", "a whole number from 16 to 16384 in steps of 2")
    assert setting["encoder.std"].kind == "a list of 3, each a number above 0, or null"
    assert setting["features.NAME.depths"].default == "[-1]"
    assert setting["trials.axes.NAME.low"].default == ""
    assert setting["resources.decode_memory_mib"].unit == "MiB"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trials.trial.coree", "did you mean `trials.trial.core`?"),
        ("learning_rate", "did you mean `trials.trial.learning_rate`?"),
        ("fps", "did you mean `video.synthetic.fps` or `video.sampling.fps` or `evaluate.models.NAME.fps`?"),
        ("features.base.reduction", "did you mean `features.NAME.reducer`?"),
        (
            "qqq",
            "valid here: root, video, shards, encoder, features, adaptations, augmentations, trials, evaluate, report, "
            "tracking, resources",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, hint):
    with pytest.raises(ConfigError, match="no such setting") as refused:
        find_settings(key)
    assert hint in str(refused.value)


def test_torch_is_not_imported_for_it():
    code = (
        "import sys; from vidflow.config.describe import describe_sections; describe_sections(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'ray', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_every_literal_of_the_models_that_is_a_choice_is_read():
    # A `Literal` that is written out in a class instead of having a name would have no place for its meanings.
    sources = read_sources(MODELS.rglob("*.py"))
    written_out = [
        f"{name}.{label}"
        for name, text in sources.classes.items()
        for label, field in text.fields.items()
        if not ast.unparse(field.annotation).startswith("ClassVar") and "Literal[" in ast.unparse(field.annotation)
    ]
    assert written_out == []
