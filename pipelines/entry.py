"""Start and end a command: load settings, check before work starts, run stages in order, return exit codes.

Callers pass in the functions that run stages, so that the stages can import this module.
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
from pipelines.display import LogHandler, Waiting, shown
from pipelines.interrupts import interrupted_message, interruptible
from vidflow.allocator import keep_freed_memory
from vidflow.config.load import load_config, writing_problem
from vidflow.config.schema import STAGES, Config
from vidflow.config.search import list_read_as_stored
from vidflow.config.tracking_uri import store_uri, without_credentials
from vidflow.errors import ConfigError, FailedTrialsError, VidflowError
from vidflow.stages.experiment import Experiment
from vidflow.stages.wanted_rows import check_rows

Run = Callable[[Experiment], None]
Load = Callable[[str], Run]
log = logging.getLogger("vidflow")


def run_stage(stage: str, run: Run) -> None:
    """Run one stage on its own, for `python -m pipelines.STAGE CONFIG.yaml`."""
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.{stage}")
    add_settings(parser)
    add_show(parser)
    parsed = parser.parse_intermixed_args()
    start()
    sys.exit(run_command(stage, parsed.settings, lambda _: run, show=parsed.print))


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings of an experiment to the arguments of a command."""
    parser.add_argument("settings", nargs="+", metavar="CONFIG.yaml|key=value", help="files, then overrides")


def add_show(parser: argparse.ArgumentParser) -> None:
    """Add `--print`."""
    parser.add_argument("--print", action="store_true", help="show settings, fingerprints and what is done")


def start() -> None:
    """Set up the log and the allocator of this process."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[LogHandler()])
    log.setLevel(logging.INFO)
    keep_freed_memory()


def run_command(command: str, settings: Sequence[str], load: Load, *, show: bool = False) -> int:
    """Load the settings, run a command and return its exit code. `load` imports the function that runs one stage."""
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
    """Load the settings and call `run` with their experiment."""
    experiment = Experiment(parse_settings(settings), settings)
    with explain_system_failures(experiment.root, resumes=resumes):
        run(experiment)


def exit_code(run: Callable[[], None], *, resumes: bool = False) -> int:
    """Call `run`, print a failure without a traceback, and return the exit code.

    Args:
        run: The function to call.
        resumes: Whether the command resumes from what is committed if it is repeated.
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
    """Run stages in order, without those that are done.

    Args:
        stages: Their names; a single one may be a tool, such as `plan`.
        experiment: The experiment, passed to every stage.
        load: Imports the function that runs one of them. Called only if there is work, because importing Ray, torch
            and MLflow takes seconds.
    """
    config = experiment.config
    if len(stages) == 1 and stages[0] in STAGES:
        progress.check_turn(experiment, stages[0])
    waiting = [stage for stage in stages if progress.finished(experiment, stage) is None]
    with shown(Waiting("checking the settings")):
        check_before_start(waiting, experiment)
    experiment.runs_on = len(stages) > 1
    failure: FailedTrialsError | None = None
    with contextlib.ExitStack() as session:
        for stage in stages:
            if stage == "synth" and len(stages) > 1 and config.video.manifest is not None:
                continue
            if (line := progress.finished(experiment, stage)) is not None:
                log.info(line)
                continue
            with shown(Waiting(f"{stage}: loading")):
                run = load(stage)
            if len(stages) > 1 and stage != "report":
                from pipelines import ray_pool

                session.enter_context(ray_pool.ray_session(config))
                if "sweep" in waiting:
                    ray_pool.check_hosts(config)
            try:
                run(experiment)
            except FailedTrialsError as error:
                failure = error  # the report is about the others
    if failure is not None:
        raise failure


def check_manifest(experiment: Experiment) -> None:
    """Check that the manifest has the splits and labels that trials need, before hours of work on its videos.

    Raises:
        ConfigError: With every problem.
    """
    if experiment.config.video.manifest is not None:
        check_rows(experiment.config, *experiment.rows)


def check_before_start(waiting: Sequence[str], experiment: Experiment) -> None:
    """Check what depends on the machine and the libraries: the root, the encoder, the store of runs.

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
    """Load the config from files and overrides.

    Raises:
        ConfigError: With every problem in them.
    """
    paths = [Path(text) for text in settings if "=" not in text]
    if not paths:
        raise ConfigError("no configuration file given; try `vidflow run conf/demo.yaml`")
    return load_config(paths, [text for text in settings if "=" in text])
