"""What is wrong with reducers' settings is said all at once, before anything starts."""

from typing import Any

import pytest

from vidflow.config.schema import FeatureSet, Reducer
from vidflow.errors import ConfigError
from vidflow.models.encoder.checks import check_encoder


def check(*reducers: tuple[str, dict[str, Any]], img_size: int = 96) -> None:
    """Check reducers of clips of 16 frames with 6 x 6 patches, in an encoder of 6 blocks."""
    features = {}
    for name, settings in reducers:
        own = dict(settings)
        reducer = Reducer(name=name, place=own.pop("place", None), settings=own)
        features[name + str(settings)] = FeatureSet(depths=[1], reducer=reducer)
    check_encoder(name="test_vit", img_size=img_size, num_frames=16, features=features)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pool", {"window": [2, 2]}, r"window \[2, 2\]; wanted a list of 3 entries, each a whole number"),
        ("pool", {"window": [1, 2.5, 2]}, r"window \[1, 2.5, 2\]; wanted a list of 3"),
        ("tome", {"num_merged": [2, 1.5]}, r"num_merged \[2, 1.5\]; wanted a whole number or a list whose every entry"),
        ("tome", {"num_merged": True}, "num_merged True; wanted a whole number"),
        ("tome", {"num_merged": 2, "proportional_attention": "off"}, "'off'; wanted true or false or null"),
        ("tome", {"keep": float("nan")}, "keep nan; wanted a number"),
        ("vidtldr", {}, "no num_merged; wanted a list"),
        ("vidtldr", {"num_merged": 3}, "num_merged 3; wanted a list"),
        ("algm", {"window": 2.5}, "window 2.5; wanted a whole number"),
        ("algm", {"local_threshold": "high"}, "'high'; wanted a number"),
        ("algm", {"place": "post", "window": [1, -1, -2]}, "three numbers from 1"),
        ("algm", {"place": "post", "window": [2, 2]}, "a list of 3 entries"),
        ("algm", {"place": "post", "window": [32, 2, 2]}, r"at most \[16, 6, 6\]"),
        ("sttm", {"num_levels": 1.5}, "num_levels 1.5; wanted a whole number"),
        ("sttm", {"temporal_threshold": "a"}, "'a'; wanted a number or null"),
        ("evs", {"threshold": "a"}, "threshold 'a'; wanted a number or null"),
        ("density_peaks", {"keep": 0.5, "num_neighbours": 2.5}, "num_neighbours 2.5; wanted a whole number"),
        ("density_peaks", {"keep": 0.5, "num_neighbours": 0}, "num_neighbours 0; wanted 1 or more"),
        ("density_peaks", {"keep": 0.5, "frames_per_segment": 0}, "frames_per_segment 0; wanted 1 or more"),
        ("density_peaks", {"keep": 0.5, "frames_per_segment": -1}, "frames_per_segment -1; wanted 1 or more"),
        ("density_peaks", {"keep": 0.5, "frames_per_segment": 5}, "clips have 16 frames"),
        ("tome", {"tokens": 37}, "tokens 37; wanted at most the 36 patches"),
        ("tome", {"place": "post", "tokens": 37}, "at most the 36 patches"),
        ("random", {"tokens": 37}, "at most the 36 patches"),
        ("divprune", {"tokens": 37}, "at most the 36 patches"),
        ("density_peaks", {"tokens": 37}, "at most the 36 patches"),
        ("fewer_frames", {"stride": 2.5}, "stride 2.5; wanted a whole number"),
        ("tome", {"num_merged": [1] * 7}, "num_merged for 7 blocks; the encoder has 6"),
        ("tome", {"num_merged": 2, "scope": "tube"}, "has scope 'tube'; this encoder offers frame"),
        ("vidtldr", {"num_merged": [1] * 7}, "num_merged for 7 blocks; the encoder has 6"),
        ("algm", {"window": 7}, "window 7; wanted 2 to 6 patches"),
        ("algm", {"local_block": 6}, "local_block 6; wanted 0 to 5"),
        ("algm", {"global_threshold": 0.9, "global_block": 6}, "global_block < 6"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_wanted(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check((name, settings))


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(("tome", {"num_merged": [1] * 7}), ("fewer_frames", {"stride": "2"}), ("none", {}), img_size=90)
    assert len(str(caught.value).splitlines()) == 3


def test_settings_that_fit_pass() -> None:
    check(
        ("none", {}),
        ("lower_resolution", {"keep": 1}),
        ("tome", {"num_merged": [4, 0, 4]}),
        ("algm", {"window": 6, "global_block": 11}),
        ("algm", {"place": "post", "window": [16, 1, 1]}),
        ("sttm", {"temporal_threshold": None}),
        ("density_peaks", {"keep": 0.5, "frames_per_segment": 8}),
    )
