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
from pipelines.preflight import Flight, find_problems, list_steps
from vidflow.allocator import keep_freed_memory
from vidflow.config.load import Draft, draft_config, join_problems
from vidflow.config.schema import STAGES
from vidflow.config.tracking_uri import without_credentials
from vidflow.errors import ConfigError, FailedTrialsError, VidflowError
from vidflow.objects import show_urls
from vidflow.stages.experiment import Experiment
from vidflow.store.journal import count_waiting

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
        run_stages(STAGES if command == "run" else [command], experiment, load)
        if command in ("run", "sweep", "report"):
            send_waiting(experiment)

    return exit_code(lambda: run_configured(command, settings, run, show=show, resumes=resumes), resumes=resumes)


def run_configured(
    command: str, settings: Sequence[str], run: Run, *, show: bool = False, resumes: bool = False
) -> None:
    """Load the settings, find everything that is wrong with them, and call `run` with their experiment.

    Args:
        command: Name of the command.
        settings: Words of the command line: files, then overrides.
        run: The function to call.
        show: Print the settings and the state of the stages instead of calling it.
        resumes: Whether the command resumes from what is committed if it is repeated.

    Raises:
        ConfigError: With every problem.
    """
    draft = parse_settings(settings)
    experiment = Experiment(draft.config, settings)
    with explain_system_failures(experiment.root, resumes=resumes):
        if not show and not draft.problems and command in STAGES:
            progress.check_turn(experiment, command)
        steps = list_steps(command, draft, experiment)
        with shown(Waiting("checking the settings")):
            problems = find_problems(Flight(draft, experiment, steps, show))
        if show and not draft.problems:
            # Some problems, such as a manifest that cannot be read, hide the state of the stages.
            with contextlib.suppress(*[ConfigError] * bool(problems)):
                print(show_urls(without_credentials(progress.describe(experiment))))
        if problems:
            raise ConfigError(join_problems(problems))
        if not show:
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
        print(show_urls(f"vidflow: {error}"), file=sys.stderr)
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
    if len(stages) > 1 and config.video.manifest is not None:
        stages = [stage for stage in stages if stage != "synth"]
    waiting = [stage for stage in stages if progress.finished(experiment, stage) is None]
    experiment.runs_on = len(stages) > 1
    failure: FailedTrialsError | None = None
    with contextlib.ExitStack() as session:
        if waiting and set(waiting) <= set(STAGES):
            # For the whole command, so that no other command comes between two stages.
            session.enter_context(experiment.exclusive())
        for stage in stages:
            if (line := progress.finished(experiment, stage)) is not None:
                log.info(line)
                continue
            with shown(Waiting(f"{stage}: loading")):
                run = load(stage)
            if len(stages) > 1 and stage != "report":
                from pipelines import ray_session

                session.enter_context(ray_session.ray_session(config))
                ray_session.check_cluster(config, waiting)
            try:
                run(experiment)
            except FailedTrialsError as error:
                failure = error  # the report is about the others
    if failure is not None:
        raise failure


def send_waiting(experiment: Experiment) -> None:
    """At the end of a command, send the records of runs that wait; MLflow is imported only if there are any."""
    if count_waiting(experiment.root):
        importlib.import_module("pipelines.sync").send_rest(experiment)


def parse_settings(settings: Sequence[str]) -> Draft:
    """Load files and overrides, as far as they are valid.

    Raises:
        ConfigError: If a file or an override cannot be read.
    """
    paths = [Path(text) for text in settings if "=" not in text]
    if not paths:
        raise ConfigError("no configuration file given; try `vidflow run conf/demo.yaml`")
    return draft_config(paths, [text for text in settings if "=" in text])
