"""The `vidflow` command."""

import argparse
import importlib
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.bench import GROUPS
from pipelines.entry import Run, add_settings, add_show, exit_code, run_command, run_configured, send_waiting, start
from pipelines.manifest import add_source
from vidflow import __version__
from vidflow.config.names import nearest_hint
from vidflow.stages.experiment import Experiment

COMMANDS = {
    "synth": "render videos with ground truth, where the config names no manifest",
    "shard": "scan, decode and pack videos into WebDataset tars",
    "extract": "encode shards once with the frozen encoder, into Arrow features",
    "sweep": "train temporal modules on the features, tracked in MLflow",
    "report": "write one HTML page about the sweep",
    "run": "all of these in order; finished stages are skipped",
    "calibrate": "print ALGM's thresholds, measured on frames of the training split",
}
TOOLS = ("calibrate",)
PRESETS = {"actions": "actions.yaml", "tasks": "tasks_demo.yaml", "merge_sweep": "merge_sweep.yaml"}
"""Name -> the file in conf/ that `vidflow init` starts from."""
TRIAL = (
    "a trial's folder, best.safetensors or MLflow run; or, for the best of its trials, a config, the folder or run of "
    "a sweep, or an experiment's root"
)
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
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    start()
    own = OWN_ARGUMENTS.get(parsed.command)
    if own is not None:
        sys.exit(exit_code(lambda: own.run(parsed)))
    sys.exit(run_command(parsed.command, parsed.settings, load, show=getattr(parsed, "print", False)))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of one command; settings may stand before and after options."""
    parser, commands = _parsers()
    if not words:
        parser.print_help()
        sys.exit(0)
    if words[0].startswith("-"):
        parser.parse_args(words)  # prints help or version, or refuses, and exits
    if words[0] not in commands:
        parser.error(f"there is no command {words[0]!r}; {_hint_command(words, list(commands))}")
    parsed = commands[words[0]].parse_intermixed_args(words[1:])
    parsed.command = words[0]
    return parsed


def _hint_command(words: Sequence[str], commands: Sequence[str]) -> str:
    """Say what to type instead of words that begin with no command."""
    first, *others = words
    if named := next((word for word in others if word in commands), None):
        rest = list(words)
        rest.remove(named)
        return f"the command comes first: vidflow {shlex.join([named, *rest])}"
    if Path(first).is_dir():
        return f"to start with a folder of videos: vidflow init {shlex.quote(first)}"
    if Path(first).suffix in (".yaml", ".yml"):
        return f"to run a config: vidflow run {shlex.join(words)}"
    return nearest_hint(first, commands)


def load(command: str) -> Run:
    """Import and return the function that runs a stage or a tool."""
    run: Run = importlib.import_module(f"pipelines.{command}").main
    return run


def run_plan(parsed: argparse.Namespace) -> None:
    """Load the settings and forecast the experiment by measuring; of an evaluation, print the points and their cost."""

    def run(experiment: Experiment) -> None:
        if experiment.config.evaluate.models:
            importlib.import_module("pipelines.evaluate.command").show(experiment)
            return
        nodes = importlib.import_module("pipelines.plan.nodes").Nodes(
            number=parsed.nodes or 1, num_cpus=parsed.node_cpus, num_gpus=parsed.node_gpus
        )
        asked = any(each is not None for each in (parsed.nodes, parsed.node_cpus, parsed.node_gpus))
        importlib.import_module("pipelines.plan.command").main(experiment, nodes if asked else None)

    run_configured("plan", parsed.settings, run)


def run_bench(parsed: argparse.Namespace) -> None:
    """Load the settings and measure some groups of `bench.GROUPS`, or all."""
    run_configured(
        "bench",
        parsed.settings,
        lambda experiment: importlib.import_module("pipelines.bench.command").main(experiment, parsed.only),
    )


def run_evaluate(parsed: argparse.Namespace) -> None:
    """Load the settings and evaluate, or print the points."""

    def run(experiment: Experiment) -> None:
        command = importlib.import_module("pipelines.evaluate.command")
        if parsed.print:
            command.show(experiment)
        else:
            command.main(experiment)
            send_waiting(experiment)

    # To print starts nothing, so nothing of the machine is checked.
    run_configured("print" if parsed.print else "evaluate", parsed.settings, run, resumes=True)


def run_rejects(parsed: argparse.Namespace) -> None:
    """Load the settings and list, retry or export the rejects."""
    run_configured(
        "rejects",
        parsed.settings,
        lambda experiment: importlib.import_module("pipelines.rejects").main(experiment, parsed.action, parsed.to),
    )


def run_sync(parsed: argparse.Namespace) -> None:
    """Load the settings and send what waits to the tracking server."""
    run_configured(
        "sync", parsed.settings, lambda experiment: importlib.import_module("pipelines.sync").main(experiment)
    )


def run_ui(parsed: argparse.Namespace) -> None:
    """Load the settings and open MLflow's UI."""
    run_configured(
        "ui", parsed.settings, lambda experiment: importlib.import_module("pipelines.ui").main(experiment, parsed.port)
    )


def run_init(parsed: argparse.Namespace) -> None:
    """Write a YAML to start from."""
    importlib.import_module("pipelines.init").main(parsed, PRESETS[parsed.preset])


def run_manifest(parsed: argparse.Namespace) -> None:
    """List the videos of a source."""
    importlib.import_module("pipelines.manifest").main(parsed)


def run_settings(parsed: argparse.Namespace) -> None:
    """Print the settings."""
    importlib.import_module("pipelines.settings").main(parsed.key, parsed.beginning)


def run_predict(parsed: argparse.Namespace) -> None:
    """Run a trial on a video."""
    importlib.import_module("pipelines.predict").main(parsed)


def run_ls(parsed: argparse.Namespace) -> None:
    """List what is there."""
    importlib.import_module("pipelines.ls").main(parsed)


def run_verify(parsed: argparse.Namespace) -> None:
    """Compare files with what is recorded of them."""
    importlib.import_module("pipelines.verify").main(parsed)


def run_gc(parsed: argparse.Namespace) -> None:
    """Show or delete what no config refers to."""
    importlib.import_module("pipelines.gc").main(parsed)


def run_merge_adapters(parsed: argparse.Namespace) -> None:
    """Import and run the tool."""
    importlib.import_module("pipelines.merge_adapters").main(parsed)


def run_export(parsed: argparse.Namespace) -> None:
    """Write a feature set for other programs."""
    importlib.import_module("pipelines.export").main(parsed)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow compare`; its words are roots, sweeps and configs."""
    add = parser.add_argument
    add(
        "sweeps",
        nargs="+",
        metavar="ROOT|SWEEP|CONFIG.yaml|key=value",
        help="an experiment's root, a folder ROOT/sweeps/KEY, or a config; overrides apply to every config",
    )
    add("--to", type=Path, default=Path("compare.html"), metavar="FILE.html", help="page to write; compare.html")


def run_compare(parsed: argparse.Namespace) -> None:
    """Write one page about several sweeps."""
    importlib.import_module("pipelines.compare").main(parsed.sweeps, parsed.to)


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and the parser of each command by name."""
    parser = argparse.ArgumentParser(
        prog="vidflow",
        description="Frozen image encoders, cached token features and small recurrent cores for video.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vidflow {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=_sentence(text),
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_settings(command)
        if name not in TOOLS:
            add_show(command)
    for name, own in OWN_ARGUMENTS.items():
        own.add(commands.add_parser(name, help=own.help, description=_sentence(own.help)))
    return parser, commands.choices


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow plan`."""
    add_settings(parser)
    add = parser.add_argument
    add("--nodes", type=_count, metavar="N", help="extrapolate to N nodes, by default like this machine")
    add("--node-cpus", type=_count, metavar="C", help="CPU cores of each of these nodes")
    add("--node-gpus", type=_whole, metavar="G", help="GPUs of each of these nodes")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow bench`."""
    add_settings(parser)
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure this group alone; may be repeated")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow evaluate`."""
    add_settings(parser)
    parser.add_argument("--print", action="store_true", help="show the points, their GMACs and tokens; starts nothing")


def add_ui(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow ui`."""
    add_settings(parser)
    parser.add_argument(
        "--port",
        type=_port,
        default=5000,
        metavar="N",
        help="port at 127.0.0.1, 5000 by default; another if it is busy",
    )


def add_settings_key(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow settings`; it reads no config."""
    parser.add_argument("key", nargs="?", metavar="KEY", help="a setting such as trials.trial.core, or a section")
    parser.add_argument("beginning", nargs="?", metavar="BEGINNING", help="only choices that begin so")


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow init`; it reads no config."""
    add_source(parser)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="actions", help="what to start from; `actions` by default")
    add("--output", type=Path, metavar="FILE.yaml", help="file to write; named after the source by default")


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow manifest`; it reads no config."""
    add_source(parser)
    parser.add_argument("--to", type=Path, metavar="FILE", help="manifest to write: .csv, .jsonl or .parquet")


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


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow verify`."""
    add = parser.add_argument
    add("places", nargs="*", metavar="ROOT|CONFIG.yaml|key=value", help="roots, or a config; default: those in runs/")
    add("--deep", type=_count, metavar="N", help="also make N random clips again, frames and tokens, and compare them")
    add("--seed", type=int, default=0, metavar="SEED", help="which clips --deep draws; 0 by default")
    add("--repair", action="store_true", help="delete what is broken, so that the next run makes it again")


def add_gc(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow gc`."""
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG.yaml|key=value", help="configs whose files stay; overrides apply to each")
    add("--root", metavar="ROOT", help="the root to clean, if it is not that of the configs")
    add("--older-than", type=_positive, metavar="DAYS", help="only what was last changed more than DAYS ago")
    add("--yes", action="store_true", help="delete what is shown; without it, nothing is deleted")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow export`."""
    add = parser.add_argument
    add("source", nargs="+", metavar="FEATURES|CONFIG.yaml|key=value", help="folder of a feature set, or a config")
    add("--to", type=Path, required=True, metavar="FOLDER", help="folder to make")
    add("--format", choices=("npz", "hf"), default="hf", help="npz: a file per clip; hf, the default: Parquet")
    add("--features", metavar="NAME", help="feature set of the config, if it has several")


def add_merge_adapters(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow merge-adapters`."""
    add = parser.add_argument
    add("trial", metavar="TRIAL", help=TRIAL)
    add("settings", nargs="*", metavar="key=value", help="more files and overrides, if TRIAL is a config")
    add("--to", type=Path, required=True, metavar="FILE.safetensors", help="file of weights to make")
    add("--weights", metavar="FILE", help="weights that the trial adapted, where they have moved since")
    add("--tracking-uri", metavar="URI", help="MLflow store of the run; MLFLOW_TRACKING_URI by default")


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


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a number from 0")
    return value


def _port(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a port from 0, which is any free one, to 65535")
    return value


class OwnArguments(NamedTuple):
    """A command with arguments of its own.

    Attributes:
        help: What it does.
        add: Adds its arguments.
        run: Runs it.
    """

    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


OWN_ARGUMENTS = {
    "plan": OwnArguments(
        "measure briefly, then say what the experiment will take in time, GFLOPs and bytes; starts nothing",
        add_plan,
        run_plan,
    ),
    "evaluate": OwnArguments(
        "evaluate pre-trained video classifiers on a split, with tokens merged or dropped; trains nothing",
        add_evaluate,
        run_evaluate,
    ),
    "bench": OwnArguments(
        "measure stages, cores, caching and token reduction on this machine, each beside what it could be",
        add_bench,
        run_bench,
    ),
    "ui": OwnArguments("open the MLflow UI on the experiment's runs, at 127.0.0.1", add_ui, run_ui),
    "sync": OwnArguments(
        "send runs that wait under the root, as the tracking server was away, to the server", add_settings, run_sync
    ),
    "rejects": OwnArguments(
        "list what was left out and why, export it as a table, or let the next run try it again",
        add_rejects,
        run_rejects,
    ),
    "predict": OwnArguments(
        "run a trained trial on a video, camera or stream, frame by frame", add_predict, run_predict
    ),
    "ls": OwnArguments(
        "list experiments: shards, features and who uses them, sweeps, trials with metrics and keys", add_ls, run_ls
    ),
    "verify": OwnArguments(
        "compare every file below a root with what is recorded of it, and delete what is broken with --repair",
        add_verify,
        run_verify,
    ),
    "gc": OwnArguments(
        "show what no given config refers to, with bytes and age, and delete it with --yes", add_gc, run_gc
    ),
    "export": OwnArguments(
        "write a feature set as npz files, or as Parquet for Hugging Face datasets, pandas and polars",
        add_export,
        run_export,
    ),
    "merge-adapters": OwnArguments(
        "merge what a trial trained in its encoder into a file of weights, for encoder.weights",
        add_merge_adapters,
        run_merge_adapters,
    ),
    "compare": OwnArguments(
        "write one page about several finished sweeps: best trials, scores, costs", add_compare, run_compare
    ),
    "settings": OwnArguments("print every setting: meaning, kind, default and choices", add_settings_key, run_settings),
    "init": OwnArguments(
        "write a commented YAML for a folder of videos, a manifest, tars or a published data set", add_init, run_init
    ),
    "manifest": OwnArguments(
        "list the videos of a folder, tars, lists or a published data set, and write them as a manifest",
        add_manifest,
        run_manifest,
    ),
}
"""A new command is one entry here, one function that adds its arguments and one that runs it."""


if __name__ == "__main__":
    main()
