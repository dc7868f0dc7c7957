"""The `vidflow` command."""

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.bench import GROUPS
from pipelines.entry import Run, add_settings, add_show, exit_code, in_order, run_command, run_configured, start

COMMANDS = {
    "synth": "render videos with ground truth, where the config names no manifest",
    "shard": "scan, decode and pack videos into WebDataset tars",
    "extract": "encode shards once with the frozen encoder, into Arrow features",
    "sweep": "train temporal modules on the features, tracked in MLflow",
    "report": "write one HTML page about the sweep",
    "run": "all of these in order; finished stages are skipped",
    "plan": "measure briefly, then say what the experiment will take in time, GFLOPs and bytes; starts nothing",
    "calibrate": "print ALGM's thresholds, measured on frames of the training split",
    "bench": "measure stages, cores, caching and token reduction on this machine, each beside what it could be",
    "ui": "open the MLflow UI on the experiment's store, at 127.0.0.1",
}
TOOLS = ("plan", "calibrate", "bench", "ui")
PRESETS = {"actions": "actions.yaml", "tasks": "tasks_demo.yaml", "merge_sweep": "merge_sweep.yaml"}
"""Name -> the file in conf/ that `vidflow init` starts from."""
REJECTS = "list what was left out and why, export it as a table, or let the next run try it again"
SETTINGS = "print every setting: meaning, kind, default and choices"
INIT = "write a commented YAML for a folder of videos or a manifest"
PREDICT = "run a trained trial on a video, camera or stream, frame by frame"
TRIAL = (
    "a trial's folder, best.safetensors or MLflow run; or, for the best of its trials, a config, the folder or run of "
    "a sweep, or an experiment's root"
)
LS = "list experiments: shards, features and who uses them, sweeps, trials with metrics and keys"
EXPORT = "write a feature set as npz files, or as Parquet for Hugging Face datasets, pandas and polars"
EPILOG = """\
settings are merged left to right: YAML files first, then key=value.

  vidflow run conf/demo.yaml                              everything, on rendered videos
  vidflow run conf/demo.yaml root=runs/mine video.manifest=my.csv encoder.weights=hub
  vidflow plan conf/merge_sweep.yaml                      time, GFLOPs and bytes of every stage, beforehand
  vidflow init my_videos/                                 a YAML for your own videos, with every setting explained
  vidflow extract conf/demo.yaml --print                  settings, fingerprints, what is done; starts nothing

exit codes: 0 done, 2 bad configuration, 3 too many rejected videos, 1 anything else.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its exit code."""
    parsed = _parser().parse_args(in_order(sys.argv[1:] if arguments is None else arguments))
    start()
    if parsed.command == "predict":
        sys.exit(exit_code(lambda: importlib.import_module("pipelines.predict").main(parsed)))
    if parsed.command in ("ls", "export"):  # they read no config before they know that they were given one
        sys.exit(exit_code(lambda: importlib.import_module(f"pipelines.{parsed.command}").main(parsed)))
    if parsed.command == "settings":
        sys.exit(exit_code(lambda: importlib.import_module("pipelines.settings").main(parsed.key, parsed.beginning)))
    if parsed.command == "init":
        sys.exit(exit_code(lambda: run_init(parsed)))
    if parsed.command == "bench":
        sys.exit(exit_code(lambda: run_bench(parsed.settings, parsed.only)))
    if parsed.command == "rejects":
        sys.exit(exit_code(lambda: run_rejects(parsed)))
    sys.exit(run_command(parsed.command, parsed.settings, load, show=getattr(parsed, "print", False)))


def load(command: str) -> Run:
    """Import and return the function that runs a stage or a tool."""
    module = "pipelines.plan.command" if command == "plan" else f"pipelines.{command}"
    run: Run = importlib.import_module(module).main
    return run


def run_bench(settings: Sequence[str], only: Sequence[str] | None) -> None:
    """Load the settings and measure some groups of `bench.GROUPS`; None is all groups."""
    run_configured(
        settings, lambda experiment: importlib.import_module("pipelines.bench.command").main(experiment, only)
    )


def run_rejects(parsed: argparse.Namespace) -> None:
    """Load the settings and list, retry or export the rejects."""
    run_configured(
        parsed.settings,
        lambda experiment: importlib.import_module("pipelines.rejects").main(experiment, parsed.action, parsed.to),
    )


def run_init(parsed: argparse.Namespace) -> None:
    """Write a YAML to start from."""
    importlib.import_module("pipelines.init").main(parsed.source, parsed.preset, PRESETS[parsed.preset], parsed.output)


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
        add_settings(command)
        if name == "bench":
            add = command.add_argument
            add("--only", action="append", choices=GROUPS, help="measure this group alone; may be repeated")
        if name not in TOOLS:
            add_show(command)
    add_rejects(commands.add_parser("rejects", help=REJECTS, description=REJECTS[0].upper() + REJECTS[1:] + "."))
    add_predict(commands.add_parser("predict", help=PREDICT, description=PREDICT[0].upper() + PREDICT[1:] + "."))
    add_ls(commands.add_parser("ls", help=LS, description=LS[0].upper() + LS[1:] + "."))
    add_export(commands.add_parser("export", help=EXPORT, description=EXPORT[0].upper() + EXPORT[1:] + "."))
    add_settings_key(
        commands.add_parser("settings", help=SETTINGS, description=SETTINGS[0].upper() + SETTINGS[1:] + ".")
    )
    add_init(commands.add_parser("init", help=INIT, description=INIT[0].upper() + INIT[1:] + "."))
    return parser


def add_settings_key(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow settings`; it reads no config."""
    parser.add_argument("key", nargs="?", metavar="KEY", help="a setting such as trials.trial.core, or a section")
    parser.add_argument("beginning", nargs="?", metavar="BEGINNING", help="only choices that begin so")


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow init`; it reads no config."""
    add = parser.add_argument
    add("source", type=Path, metavar="FOLDER_OR_MANIFEST", help="folder of videos, or CSV, JSONL or Parquet manifest")
    add("--preset", choices=PRESETS, default="actions", help="what to start from; `actions` by default")
    add("--output", type=Path, metavar="FILE.yaml", help="file to write; named after the source by default")


def add_rejects(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow rejects`."""
    parser.add_argument("action", choices=("list", "retry", "export"), help="what to do")
    add_settings(parser)
    parser.add_argument("--to", type=Path, metavar="FILE", help="file of `export`: .csv, .jsonl or .parquet")


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow predict`."""
    add = parser.add_argument
    add("trial", metavar="TRIAL", help=TRIAL)
    add("source", metavar="VIDEO", help="video file, number of a camera such as 0, or rtsp:// or http:// address")
    add("settings", nargs="*", metavar="key=value", help="more files and overrides, if TRIAL is a config")
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


def add_ls(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow ls`."""
    add = parser.add_argument
    add("places", nargs="*", metavar="ROOT|CONFIG.yaml|key=value", help="roots, or a config; default: those in runs/")
    add("--json", action="store_true", help="print JSON, with every setting and metric")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow export`."""
    add = parser.add_argument
    add("source", nargs="+", metavar="FEATURES|CONFIG.yaml|key=value", help="folder of a feature set, or a config")
    add("--to", type=Path, required=True, metavar="FOLDER", help="folder to make")
    add("--format", choices=("npz", "hf"), default="hf", help="npz: a file per clip; hf, the default: Parquet")
    add("--features", metavar="NAME", help="feature set of the config, if it has several")


def _numbers(count: int) -> Callable[[str], list[float]]:
    """Return a parser of `count` numbers separated by commas."""

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
