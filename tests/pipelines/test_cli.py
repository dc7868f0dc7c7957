import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.entry import exit_code


def test_help_names_every_command_and_the_exit_codes(vidflow):
    done = vidflow("--help")
    assert done.returncode == 0
    for word in ("synth", "shard", "extract", "sweep", "report", "run", "bench", "ui", "exit codes"):
        assert word in done.stdout


def test_a_bad_config_ends_with_2_and_every_problem_and_no_traceback(vidflow, tiny):
    done = vidflow("run", tiny, "video.sizee=3", "trials.trial.epochs=0")
    assert done.returncode == 2
    assert "2 problems" in done.stderr
    assert "did you mean `size`?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tiny.parent / "root").exists()


def test_no_config_at_all_says_what_to_type(vidflow):
    done = vidflow("shard", "root=x")
    assert done.returncode == 2
    assert "vidflow run conf/demo.yaml" in done.stderr


def test_a_stage_out_of_turn_names_the_one_before_it(here, tiny):
    for stage, before in (("shard", "vidflow synth"), ("extract", "vidflow synth"), ("report", "vidflow synth")):
        done = here(stage, tiny)
        assert done.returncode == 1
        assert before in done.stderr
        assert "Traceback" not in done.stderr


def test_print_shows_settings_and_starts_nothing(here, tiny):
    done = here("run", tiny, "--print", "encoder.name=vit_tiny_patch16_224")
    assert done.returncode == 0
    assert "name: vit_tiny_patch16_224" in done.stdout
    assert "to do" in done.stdout
    assert not (tiny.parent / "root").exists()


def test_an_unknown_encoder_is_refused_with_the_nearest_name(here, tiny):
    done = here("run", tiny, "encoder.name=vit_smal_patch16_224")
    assert done.returncode == 2
    assert "vit_small_patch16_224" in done.stderr
    assert not (tiny.parent / "root").exists()


def test_a_server_that_gives_no_answer_is_said_before_anything_starts(here, tiny):
    silent = "tracking.uri=http://127.0.0.1:9"
    done = here("run", tiny, silent, "encoder.name=vit_smal_patch16_224")
    assert done.returncode == 2
    assert "vit_small_patch16_224" in done.stderr
    assert "cannot use http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tiny.parent / "root").exists()
    shown = here("run", tiny, silent, "--print")
    assert shown.returncode == 2
    assert "name: test_vit" in shown.stdout
    assert "cannot use http://127.0.0.1:9" in shown.stderr


def test_a_root_on_a_disk_that_refuses_writing_is_said_before_anything_starts(here, tiny):
    for root, place in (("/proc/x/y", "/proc"), (tiny, tiny)):
        done = here("run", tiny, f"root={root}")
        assert done.returncode == 2
        assert f"root: cannot write to {place}" in done.stderr or f"root: {place} is a file" in done.stderr


def test_a_root_that_cannot_be_made_is_a_sentence_for_rejects_too(here, tiny):
    done = here("rejects", "retry", tiny, "root=/proc/xyz")
    assert done.returncode == 1
    assert done.stderr == "vidflow: /proc/xyz: No such file or directory\n"


@pytest.mark.parametrize(("size", "is_unbuffered"), [(1, False), (100_000, False), (1, True)])
def test_output_that_cannot_be_written_is_a_sentence(size, is_unbuffered):
    code = f"from pipelines.entry import exit_code; import sys; sys.exit(exit_code(lambda: print('x' * {size})))"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" * is_unbuffered}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr == "vidflow: standard output cannot be written (No space left on device)\n"


def test_a_reader_that_has_read_enough_ends_the_command_quietly():
    code = "from pipelines.entry import exit_code; import sys; sys.exit(exit_code(lambda: print('x\\n' * 100_000)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"x\n"
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(("resumes", "promise"), [(True, "; the same command resumes from here"), (False, "")])
def test_only_a_command_that_resumes_says_so_when_it_is_interrupted(resumes, promise, capsys):
    assert exit_code(lambda: signal.raise_signal(signal.SIGINT), resumes=resumes) == 1
    assert capsys.readouterr().err == f"vidflow: interrupted{promise}\n"


@pytest.mark.parametrize(("command", "resumes"), [("plan", False), ("bench", False), ("sweep", True), ("run", True)])
def test_plan_and_bench_promise_nothing_when_they_are_interrupted(command, resumes, tiny, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.entry.draft_config", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit):
        main([command, str(tiny)])
    assert ("resumes from here" in capsys.readouterr().err) is resumes


def test_an_unknown_command_gets_the_nearest_name(here):
    done = here("exract", "conf/demo.yaml")
    assert done.returncode == 2
    assert "did you mean `extract`?" in done.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["mine.yaml", "run"], "vidflow run mine.yaml"),
        (["mine.yaml", "root=a b"], "vidflow run mine.yaml 'root=a b'"),
        (["conf"], "vidflow init conf"),
        (["run", "conf"], "vidflow init conf"),
        (["predict", "clip.mp4", "mine.yaml"], "vidflow predict mine.yaml clip.mp4"),
        (["ui", "mine.yaml", "--port", "high"], "got high, wanted a port"),
    ],
)
def test_words_in_the_wrong_place_are_answered_with_what_to_type(here, words, hint):
    done = here(*words)
    assert done.returncode == 2
    assert hint in done.stderr


def test_weights_that_cannot_be_downloaded_are_one_line_with_what_to_type(vidflow, tiny, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    done = vidflow("run", tiny, "encoder.name=vit_small_patch16_dinov3.lvd1689m", "encoder.weights=hub")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "(Connection refused)" in done.stderr.replace("[Errno 111] ", "")
    assert "add encoder.weights=random:0" in done.stderr


def test_the_bare_command_prints_help_and_the_version_has_an_option(here):
    bare = here()
    assert (bare.returncode, bare.stderr) == (0, "")
    assert "COMMAND" in bare.stdout
    assert here("--version").stdout.startswith("vidflow ")


@pytest.mark.parametrize("words", [["rejects", "list"], ["run"], ["bench"]])
def test_settings_stand_before_and_after_options(words, here, tiny):
    option = {"rejects": ["--to", "x.csv"], "run": ["--print"], "bench": ["--only", "read"]}[words[0]]
    done = here(*words, tiny, *option, "video.sizee=3", "shards.clips_per_shard=0")
    assert done.returncode == 2
    assert "2 problems" in done.stderr
