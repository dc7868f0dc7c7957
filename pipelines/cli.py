"""The `vidflow` command."""

import argparse
import contextlib
import importlib
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.disk import explain_output_failures, explain_system_failures
from pipelines.interrupts import interrupted_message, interruptible
from pipelines.state import Progress
from vidflow.allocator import keep_freed_memory
from vidflow.config.load import load_config, writing_problem
from vidflow.config.schema import STAGES, Config
from vidflow.config.tracking_uri import store_uri, without_credentials
from vidflow.errors import ConfigError, VidflowError
from vidflow.stages.locate import read_items
from vidflow.stages.wanted_rows import check_rows

COMMANDS = {
    "synth": "render videos with ground truth, where the config names no manifest",
    "shard": "scan, decode and pack videos into WebDataset tars",
    "extract": "encode shards once with the frozen encoder, into Arrow features",
    "sweep": "train temporal modules on the features, tracked in MLflow",
    "report": "write one HTML page about the sweep",
    "run": "all of these in order; whatever is already done is left alone",
    "plan": "measure briefly, then say what the experiment will take in time, GFLOPs and bytes; starts nothing",
    "calibrate": "print ALGM's thresholds, measured on frames of the training split",
    "bench": "measure stages, cores, caching and token reduction on this machine, each beside what it could be",
    "ui": "open the MLflow UI on the experiment's store, at 127.0.0.1",
}
TOOLS = ("plan", "calibrate", "bench", "ui")
BENCH_GROUPS = ("cores", "reduction", "cached", "read", "stages")
REJECTS = "list what was left out and why, export it as a table, or let the next run try it again"
PREDICT = "run a trained trial on a video, camera or stream, frame by frame"
log = logging.getLogger("vidflow")
EPILOG = """\
settings are merged left to right: YAML files first, then key=value.

  vidflow run conf/demo.yaml                              everything, on rendered videos
  vidflow run conf/demo.yaml root=runs/mine video.manifest=my.csv encoder.weights=hub
  vidflow plan conf/merge_sweep.yaml                      time, GFLOPs and bytes of every stage, beforehand
  vidflow extract conf/demo.yaml --print                  settings, fingerprints, what is done; starts nothing

exit codes: 0 done, 2 bad configuration, 3 too many rejected videos, 1 anything else.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # argparse wants all settings side by side; people add one more after an option.
    given.sort(key=lambda word: word == "--print")
    parsed = _parser().parse_args(given)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("vidflow").setLevel(logging.INFO)
    keep_freed_memory()
    if parsed.command == "predict":
        sys.exit(exit_code(lambda: importlib.import_module("pipelines.predict").main(parsed)))
    if parsed.command == "bench":
        sys.exit(exit_code(lambda: run_bench(parsed.settings, parsed.only)))
    if parsed.command == "rejects":
        sys.exit(exit_code(lambda: run_rejects(parsed)))
    sys.exit(run_command(parsed.command, parsed.settings, show=getattr(parsed, "print", False)))


def run_stage(stage: str) -> None:
    """Run one stage as a job of its own, as `python -m pipelines.STAGE CONFIG.yaml` does."""
    main([stage, *sys.argv[1:]])


def run_command(command: str, settings: Sequence[str], *, show: bool = False) -> int:
    """Load the settings and run a command; return its exit code."""
    resumes = command in (*STAGES, "run")

    def run(config: Config) -> None:
        if show:
            if command in ("run", "sweep"):
                check_manifest(config)
            print(without_credentials(Progress(config).describe()))
        else:
            run_stages(STAGES if command == "run" else [command], config)

    return exit_code(lambda: run_configured(settings, run, resumes=resumes), resumes=resumes)


def run_configured(settings: Sequence[str], run: Callable[[Config], None], *, resumes: bool = False) -> None:
    """Load the settings and run something with them."""
    config = parse_settings(settings)
    with explain_system_failures(Path(config.root), resumes=resumes):
        run(config)


def run_bench(settings: Sequence[str], only: Sequence[str] | None) -> None:
    """Load the settings and measure some groups of `BENCH_GROUPS`, all of them for None."""
    run_configured(
        settings, lambda config: importlib.import_module("pipelines.bench").main(config, only or BENCH_GROUPS)
    )


def run_rejects(parsed: argparse.Namespace) -> None:
    """Load the settings and list, retry or export what was left out."""
    run_configured(
        parsed.settings,
        lambda config: importlib.import_module("pipelines.rejects").main(config, parsed.action, parsed.to),
    )


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


def run_stages(stages: Sequence[str], config: Config) -> None:
    """Run stages in order, leaving out what is done."""
    progress = Progress(config)
    if len(stages) == 1 and stages[0] in STAGES:
        progress.check_turn(stages[0])
    waiting = [stage for stage in stages if progress.finished(stage) is None]
    check_before_start(waiting, config)
    with contextlib.ExitStack() as session:
        for stage in stages:
            if stage == "synth" and len(stages) > 1 and config.video.manifest is not None:
                continue
            if (line := progress.finished(stage)) is not None:
                log.info(line)
                continue
            # Imported when there is work: Ray, torch and MLflow take seconds that a refusal or a no-op should not.
            module = importlib.import_module(f"pipelines.{stage}")
            if len(stages) > 1 and stage != "report":
                job = importlib.import_module("pipelines.job")
                session.enter_context(job.ray_session(config))
                if "sweep" in waiting:
                    job.check_hosts(config)
            module.main(config)


def check_manifest(config: Config) -> None:
    """Check that the manifest holds what trials will ask for, before hours go into its videos.

    Raises:
        ConfigError: With every problem.
    """
    if config.video.manifest is not None:
        check_rows(config, *read_items(config))


def check_before_start(waiting: Sequence[str], config: Config) -> None:
    """Check what only the machine and the libraries can tell: the root, the encoder, the store of runs.

    Raises:
        ConfigError: With every problem found.
    """
    problems = []
    if waiting and (problem := writing_problem(config)) is not None:
        problems.append(problem)
    checks: list[Callable[[], None]] = []
    if "extract" in waiting or "plan" in waiting:
        checks.append(lambda: _check_encoder(config))
    if "sweep" in waiting:
        checks.append(lambda: check_manifest(config))
    if "sweep" in waiting or "report" in waiting:
        checks.append(lambda: importlib.import_module("vidflow.tracking").check_store(store_uri(config)))
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def _check_encoder(config: Config) -> None:
    importlib.import_module("vidflow.models.checks").check_encoder(
        name=config.encoder.name,
        img_size=config.encoder.img_size,
        num_frames=config.video.sampling.num_frames,
        depths=[features.depths for features in config.features.values()],
        reducers=[(r.name, {"stage": r.stage, **r.settings}) for r in (f.reducer for f in config.features.values())],
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vidflow",
        description="Frozen image encoders, cached token features and small recurrent cores for video.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("settings", nargs="+", metavar="CONFIG.yaml|key=value", help="files, then overrides")
        if name == "bench":
            add = command.add_argument
            add("--only", action="append", choices=BENCH_GROUPS, help="measure this group alone; may be repeated")
        if name not in TOOLS:
            command.add_argument("--print", action="store_true", help="show settings, fingerprints and what is done")
    add_rejects(commands.add_parser("rejects", help=REJECTS, description=REJECTS[0].upper() + REJECTS[1:] + "."))
    add_predict(commands.add_parser("predict", help=PREDICT, description=PREDICT[0].upper() + PREDICT[1:] + "."))
    return parser


def add_rejects(parser: argparse.ArgumentParser) -> None:
    """Add what `vidflow rejects` takes."""
    parser.add_argument("action", choices=("list", "retry", "export"), help="what to do")
    parser.add_argument("settings", nargs="+", metavar="CONFIG.yaml|key=value", help="files, then overrides")
    parser.add_argument("--to", type=Path, metavar="FILE", help="file of `export`: .csv, .jsonl or .parquet")


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add what `vidflow predict` takes; it reads no config, as a trial holds all that it needs."""
    add = parser.add_argument
    add("trial", metavar="RUN_ID_OR_DIR", help="MLflow run of a trial, or the trial's folder or best.safetensors")
    add("source", metavar="VIDEO", help="video file, number of a camera such as 0, or rtsp:// or http:// address")
    add("--out", type=Path, metavar="FILE.mp4", help="write the video with the predictions drawn on it")
    add("--json", metavar="FILE", help="write one JSON line per frame; `-`, the default without --out, is stdout")
    add("--depth", type=Path, metavar="DIR", help="write depth maps as 16-bit PNG in millimetres")
    add("--box", type=_numbers(4), action="append", default=[], metavar="x0,y0,x1,y1", help="box to follow, in pixels")
    add("--point", type=_numbers(2), action="append", default=[], metavar="x,y", help="point to follow, in pixels")
    add("--fps", type=_positive, help="frames per second to look at; the trial's own by default")
    add("--start", type=_finite, metavar="SECONDS", help="where to start on the video's clock")
    add("--max-frames", type=_count, metavar="N", help="look at no more than N frames")
    add("--weights", metavar="FILE", help="encoder's weights, where they have moved since the features were made")
    add("--tracking-uri", metavar="URI", help="MLflow store of the run; MLFLOW_TRACKING_URI by default")
    add("--save-state", type=Path, metavar="FILE.safetensors", help="keep what is remembered after the last frame")
    add("--load-state", type=Path, metavar="FILE.safetensors", help="go on from there, as with --start")


def _numbers(count: int) -> Callable[[str], list[float]]:
    """Return a parser of that many numbers with commas between them."""

    def parse(text: str) -> list[float]:
        values = [_finite(part) for part in text.split(",")]
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"got {len(values)} numbers in {text!r}, wanted {count}")
        return values

    return parse


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text}, wanted a finite number")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a number above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a number from 1")
    return value


if __name__ == "__main__":
    main()
