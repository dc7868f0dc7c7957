"""`vidflow settings`: what a user reads."""

import re

import pytest

from pipelines.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["settings", *arguments])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_all_settings_fit_the_screen_and_come_without_a_slow_import(vidflow, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = vidflow("settings")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 112
    assert "  trials.trial.learning_rate = 0.0003 " in done.stdout
    imported = re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert "vidflow.config.schema" in imported
    assert not {"torch", "ray", "mlflow"}.intersection(imported)


def test_both_new_commands_are_in_the_help(vidflow):
    lines = vidflow("--help").stdout.splitlines()
    for command in ("settings", "init"):
        assert sum(line.startswith(f"    {command} ") for line in lines) == 1


def test_a_key_shows_each_choice_with_its_paper(capsys):
    code, out, _ = run(capsys, "trials.trial.core")
    assert code == 0
    assert "  gru: A stacked GRU over the frames of each token" in out
    assert "    Source: Cho et al. 2014" in out


def test_reducers_are_listed_with_the_places_and_settings_of_each(capsys):
    code, out, _ = run(capsys, "features.base.reducer")
    assert code == 0
    assert "  algm (at block): " in out
    assert "    - local_threshold = 0.88  Similarity from which a window merges" in out
    assert "    Settings: those of tome (at block)." in out
    assert "          clip: The tokens of the whole clip." in out
    assert max(map(len, out.splitlines())) <= 112


def test_the_beginning_of_choices_leaves_out_the_others(capsys):
    code, out, _ = run(capsys, "trials.trial.core", "ma")
    assert code == 0
    assert "  mamba_mix: " in out
    assert "  gru: " not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trials.trial.coree"], "did you mean `trials.trial.core`?"),
        (["trials.trial.core", "zz"], "no choice begins with 'zz'; valid here: identity, "),
        (["root", "a"], "root: no choice begins with 'a'; it has no choices"),
        (["encoder.name", "no_such_vit"], "timm has no vision transformer with 'no_such_vit' in its name"),
    ],
)
def test_what_is_not_there_ends_with_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert out == ""


def test_encoders_are_found_by_a_part_of_their_names(capsys):
    code, out, _ = run(capsys, "encoder.name", "DINOv3")
    assert code == 0
    assert "  vit_small_patch16_dinov3.lvd1689m " in out
    lines = out.splitlines()[1:]
    assert all("dinov3" in line for line in lines)
    assert all(line.endswith(("weights: hub", "not on the hub")) for line in lines)
    assert "  test_vit4  not on the hub" in run(capsys, "encoder.name", "test_vit4")[1]
