"""Hostile configs: whatever the text, the settings are read or refused in one message."""

import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidflow.config.fingerprints import canonical_json
from vidflow.config.load import config_to_dict, config_to_yaml, load_config
from vidflow.config.schema import Config
from vidflow.errors import ConfigError

DEMO = (Path(__file__).parents[2] / "conf" / "demo.yaml").read_text()


def key_paths(section: type = Config, above: str = "") -> list[str]:
    hints = typing.get_type_hints(section)
    found = []
    for field in fields(section):
        found.append(f"{above}{field.name}")
        if is_dataclass(hints[field.name]):
            found += key_paths(hints[field.name], f"{above}{field.name}.")
    return found


KEYS = [
    *key_paths(),
    "features.base.depths",
    "features.x.reducer.settings.keep",
    "trials.axes.seed",
    "trials.axes.core",
]
KEYS += ["trials.axes.learning_rate", "a.b", "root.x", "features.base", "trials.axes.learning_rate.low"]
VALUES = [
    *(".nan", ".inf", "-.inf", "nan", "1e400", "1" + "0" * 5000, "0x" + "f" * 5000, "-1", "0", "1", "2.5", "1_000"),
    *("0x", "0b", "0o9", "1:30", "190:20:30", "2001-99-99", "2001-01-01", "on", "null", "~", "true", "''", '""'),
    *("[]", "{}", "[1,2", "{a: ", "[[[[]]]]", "{? [a] : b}", "!!python/object:os.system x", "!!binary a", "!!set {a}"),
    *(
        "&a [*a]",
        "*b",
        "<<",
        "${a}",
        "${root}",
        "${oc.env:NOPE}",
        "${oc.decode:x}",
        "${oc.env:HOME}",
        "${",
        "$",
        "${.}",
    ),
    *(
        "s3://a/b",
        "http://u:p@h/x",
        "~nobody-here/x",
        "a" * 5000,
        "\x00",
        '"\\ud800"',
        "random:²",
        "random:-1",
        "random:1",
    ),
    *(
        "[.nan]",
        "{low: .nan, high: 1}",
        "{low: 1e-9, high: 1e30, log: true}",
        "{low: 1e-4, high: 1e-2}",
        "[1, a, .inf]",
    ),
    *(
        "[" * 3000,
        "a: " * 50,
        "- " * 200,
        "???",
        "# x",
        "| x",
        "> ",
        "%x",
        "@",
        "`",
        "\t",
        "é",
        "\u2028",
        "9" * 400,
        "hub",
    ),
]
TOKENS = [
    *VALUES,
    *KEYS,
    "\n",
    "  ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&x ",
    "*x",
    "<<: *x",
    "---",
    "...",
    "\ufeff",
]
value = st.sampled_from(VALUES) | st.text(max_size=8)
override = st.builds("{}={}".format, st.sampled_from(KEYS), value) | st.text(max_size=20)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(VALUES)
node = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([key.split(".")[-1] for key in KEYS]) | plain, inner, max_size=4)
    ),
    max_leaves=8,
)
sections = st.dictionaries(st.sampled_from([f.name for f in fields(Config)]) | plain, node, max_size=3)


@st.composite
def edited_demo(draw) -> str:
    text = DEMO
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        until = min(len(text), at + draw(st.sampled_from([0, 0, 1, 3, 30])))
        text = text[:at] + draw(st.sampled_from(TOKENS) | st.text(max_size=3)) + text[until:]
    return text


texts = edited_demo() | st.builds(yaml.safe_dump, sections) | st.lists(st.sampled_from(TOKENS)).map("".join)
contents = texts.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=20_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(contents, st.lists(override, max_size=2))
def test_a_hostile_config_is_read_or_refused_in_one_message(tmp_path_factory, content, overrides):
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_bytes(content)
    try:
        config = load_config([path], overrides)
    except ConfigError as error:
        message = str(error)
    else:
        message = canonical_json(config_to_dict(config)) + config_to_yaml(config)
    assert 0 < len(message.encode()) < 100_000


BOMB = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "anchors"),
        ("a: &a [*a]", "anchors"),
        ("[" * 3000, "not readable as YAML"),
        ("root: a\nroot: b", "duplicate"),
        ("1: {2: 3}", "keys should be strings"),
        ("root: ${oc.env:NOPE_NOT_SET}", "NOPE_NOT_SET"),
        ("video: {sampling: {num_frames: 1" + "0" * 5000 + "}}", "5001 digits"),
        ("trials: {axes: {seed: [1, 1]}, num_samples: 2000000000, algorithm: random}", "at most 100000"),
        ("root: ~nobody-of-that-name/x", "home folder"),
    ],
)
def test_a_config_made_to_break_its_reader_is_refused(tmp_path, text, part):
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load_config([path])
