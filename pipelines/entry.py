"""How a command starts and ends: settings, what is refused before work, stages in their order, exit codes.

What runs a stage is handed in, so that the stages themselves can stand on this module.
"""

import argparse
import contextlib
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines import progress
from pipelines.disk import explain_output_failures, explain_system_failures
from pipelines.interrupts import interrupted_message, interruptible
from vidflow.allocator import keep_freed_memory
from vidflow.config.load import load_config, writing_problem
from vidflow.config.schema import STAGES, Config
from vidflow.config.search import list_read_as_stored
from vidflow.config.tracking_uri import store_uri, without_credentials
from vidflow.errors import ConfigError, VidflowError
from vidflow.stages.experiment import Experiment
from vidflow.stages.wanted_rows import check_rows

Run = Callable[[Experiment], None]
Load = Callable[[str], Run]
log = logging.getLogger("vidflow")


def run_stage(stage: str, run: Run) -> None:
    """Run one stage as a job of its own, as `python -m pipelines.STAGE CONFIG.yaml` does."""
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.{stage}")
    add_settings(parser)
    add_show(parser)
    parsed = parser.parse_args(in_order(sys.argv[1:]))
    start()
    sys.exit(run_command(stage, parsed.settings, lambda _: run, show=parsed.print))


def in_order(arguments: Sequence[str]) -> list[str]:
    """Move `--print` to the end: argparse wants all settings side by side, people add one more after an option."""
    return sorted(arguments, key=lambda word: word == "--print")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings of an experiment to what a command takes."""
    parser.add_argument("settings", nargs="+", metavar="CONFIG.yaml|key=value", help="files, then overrides")


def add_show(parser: argparse.ArgumentParser) -> None:
    """Add `--print`."""
    parser.add_argument("--print", action="store_true", help="show settings, fingerprints and what is done")


def start() -> None:
    """Set up the log and the allocator of this process."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    log.setLevel(logging.INFO)
    keep_freed_memory()


def run_command(command: str, settings: Sequence[str], load: Load, *, show: bool = False) -> int:
    """Load the settings and run a command; return its exit code. `load` imports what runs one stage."""
    resumes = command in (*STAGES, "run")

    def run(experiment: Experiment) -> None:
        if show:
            if command in ("run", "sweep"):
                check_manifest(experiment)
            print(without_credentials(progress.describe(experiment)))
        else:
            run_stages(STAGES if command == "run" else [command], experiment, load)

    return exit_code(lambda: run_configured(settings, run, resumes=resumes), resumes=resumes)


def run_configured(settings: Sequence[str], run: Run, *, resumes: bool = False) -> None:
    """Load the settings and run something with the experiment that they make."""
    experiment = Experiment(parse_settings(settings))
    with explain_system_failures(experiment.root, resumes=resumes):
        run(experiment)


def exit_code(run: Callable[[], None], *, resumes: bool = False) -> int:
    """Run something, say what went wrong without a traceback, and return the exit code.

    Args:
        run: What to run.
        resumes: Whether the same command, repeated, resumes from what is committed.
    """
    message = interrupted_message(resumes=resumes)
    try:
        with interruptible(message), explain_system_failures(Path(), resumes=resumes), explain_output_failures():
            run()
    except VidflowError as error:
        print(f"vidflow: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(message, file=sys.stderr)
        return 1
    return 0


def run_stages(stages: Sequence[str], experiment: Experiment, load: Load) -> None:
    """Run stages in order, leaving out what is done.

    Args:
        stages: Their names; one alone may be a tool, such as `plan`.
        experiment: Every stage is handed this one.
        load: Imports what runs one of them. Called when there is work: Ray, torch and MLflow take seconds that a
            refusal or a no-op should not.
    """
    config = experiment.config
    if len(stages) == 1 and stages[0] in STAGES:
        progress.check_turn(experiment, stages[0])
    waiting = [stage for stage in stages if progress.finished(experiment, stage) is None]
    check_before_start(waiting, experiment)
    with contextlib.ExitStack() as session:
        for stage in stages:
            if stage == "synth" and len(stages) > 1 and config.video.manifest is not None:
                continue
            if (line := progress.finished(experiment, stage)) is not None:
                log.info(line)
                continue
            run = load(stage)
            if len(stages) > 1 and stage != "report":
                from pipelines import ray_pool

                session.enter_context(ray_pool.ray_session(config))
                if "sweep" in waiting:
                    ray_pool.check_hosts(config)
            run(experiment)


def check_manifest(experiment: Experiment) -> None:
    """Check that the manifest holds what trials will ask for, before hours go into its videos.

    Raises:
        ConfigError: With every problem.
    """
    if experiment.config.video.manifest is not None:
        check_rows(experiment.config, *experiment.rows)


def check_before_start(waiting: Sequence[str], experiment: Experiment) -> None:
    """Check what only the machine and the libraries can tell: the root, the encoder, the store of runs.

    Raises:
        ConfigError: With every problem found.
    """
    config, problems = experiment.config, []
    if waiting and (problem := writing_problem(config)) is not None:
        problems.append(problem)
    checks: list[Callable[[], None]] = []
    even = list_read_as_stored(config) if {"extract", "plan", "sweep"} & set(waiting) else []
    if "extract" in waiting or "plan" in waiting or even:
        checks.append(lambda: _check_encoder(config, even))
    if "sweep" in waiting:
        checks.append(lambda: check_manifest(experiment))
    if "sweep" in waiting or "report" in waiting:
        checks.append(lambda: importlib.import_module("vidflow.tracking").check_store(store_uri(config)))
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def _check_encoder(config: Config, even: Sequence[str]) -> None:
    importlib.import_module("vidflow.models.encoder.checks").check_encoder(
        name=config.encoder.name,
        img_size=config.encoder.img_size,
        num_frames=config.video.sampling.num_frames,
        features=config.features,
        even=even,
    )


def parse_settings(settings: Sequence[str]) -> Config:
    """Return the config that files and overrides make.

    Raises:
        ConfigError: With every problem in them.
    """
    paths = [Path(text) for text in settings if "=" not in text]
    if not paths:
        raise ConfigError("no configuration file given; try `vidflow run conf/demo.yaml`")
    return load_config(paths, [text for text in settings if "=" in text])
