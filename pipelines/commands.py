"""The commands with arguments of their own: what they take, and what runs them.

What runs a command is imported when it is asked for, because torch, Ray and MLflow take seconds.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.argument_kinds import count, finite, numbers, port, positive, whole
from pipelines.bench import GROUPS
from pipelines.entry import add_settings, run_configured, send_waiting
from pipelines.manifest import add_source
from vidflow.stages.experiment import Experiment

PRESETS = {"actions": "actions.yaml", "tasks": "tasks_demo.yaml", "merge_sweep": "merge_sweep.yaml"}
"""Name -> the file in conf/ that `vidflow init` starts from."""
TRIAL = (
    "a trial's folder, best.safetensors or MLflow run; or, for the best of its trials, a config, the folder or run of "
    "a sweep, or an experiment's root"
)
_KEPT = "configs whose files stay, or in quotes the files and overrides of one command; other overrides apply to each"
Run = Callable[[argparse.Namespace], None]


def _tool(name: str, *arguments: str) -> Run:
    """Return what runs a module's `main` on the arguments, or on some of them."""
    return lambda parsed: _module(name).main(*[getattr(parsed, each) for each in arguments] or [parsed])


def _configured(command: str, *arguments: str, module: str | None = None) -> Run:
    """Return what loads the settings and runs a module's `main` on their experiment and on some of the arguments."""

    def run(parsed: argparse.Namespace) -> None:
        values = [getattr(parsed, name) for name in arguments]
        run_configured(
            command, parsed.settings, lambda experiment: _module(module or command).main(experiment, *values)
        )

    return run


def _module(name: str) -> Any:
    return importlib.import_module(f"pipelines.{name}")


def run_plan(parsed: argparse.Namespace) -> None:
    """Load the settings and forecast the experiment by measuring; of an evaluation, print the points and their cost."""

    def run(experiment: Experiment) -> None:
        if experiment.config.evaluate.models:
            _module("evaluate.command").show(experiment)
            return
        nodes = _module("plan.nodes").Nodes(
            number=parsed.nodes or 1, num_cpus=parsed.node_cpus, num_gpus=parsed.node_gpus
        )
        asked = any(each is not None for each in (parsed.nodes, parsed.node_cpus, parsed.node_gpus))
        _module("plan.command").main(experiment, nodes if asked else None)

    run_configured("plan", parsed.settings, run)


def run_evaluate(parsed: argparse.Namespace) -> None:
    """Load the settings and evaluate, or print the points."""

    def run(experiment: Experiment) -> None:
        command = _module("evaluate.command")
        if parsed.print:
            command.show(experiment)
        else:
            command.main(experiment)
            send_waiting(experiment)

    # To print starts nothing, so nothing of the machine is checked.
    run_configured("print" if parsed.print else "evaluate", parsed.settings, run, resumes=True)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow plan`."""
    add_settings(parser)
    add = parser.add_argument
    add("--nodes", type=count, metavar="N", help="extrapolate to N nodes, by default like this machine")
    add("--node-cpus", type=count, metavar="C", help="CPU cores of each of these nodes")
    add("--node-gpus", type=whole, metavar="G", help="GPUs of each of these nodes")


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
        type=port,
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
    add("--box", type=numbers(4), action="append", default=[], metavar="x0,y0,x1,y1", help="box to follow, in pixels")
    add("--point", type=numbers(2), action="append", default=[], metavar="x,y", help="point to follow, in pixels")
    add("--fps", type=positive, help="frames per second to look at; the trial's own by default")
    add("--start", type=finite, metavar="SECONDS", help="where to start on the video's clock")
    add("--max-frames", type=count, metavar="N", help="look at no more than N frames")
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
    add("--deep", type=count, metavar="N", help="also make N random clips again, frames and tokens, and compare them")
    add("--seed", type=int, default=0, metavar="SEED", help="which clips --deep draws; 0 by default")
    add("--repair", action="store_true", help="delete what is broken, so that the next run makes it again")


def add_gc(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vidflow gc`."""
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG.yaml|key=value", help=_KEPT)
    add("--root", metavar="ROOT", help="the root to clean, if it is not that of the configs")
    add("--older-than", type=positive, metavar="DAYS", help="only what was last changed more than DAYS ago")
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
        _configured("bench", "only", module="bench.command"),
    ),
    "ui": OwnArguments("open the MLflow UI on the experiment's runs, at 127.0.0.1", add_ui, _configured("ui", "port")),
    "sync": OwnArguments(
        "send runs that wait under the root, as the tracking server was away, to the server",
        add_settings,
        _configured("sync"),
    ),
    "rejects": OwnArguments(
        "list what was left out and why, export it as a table, or let the next run try it again",
        add_rejects,
        _configured("rejects", "action", "to"),
    ),
    "predict": OwnArguments(
        "run a trained trial on a video, camera or stream, frame by frame", add_predict, _tool("predict")
    ),
    "ls": OwnArguments(
        "list experiments: shards, features and who uses them, sweeps, trials with metrics and keys",
        add_ls,
        _tool("ls"),
    ),
    "verify": OwnArguments(
        "compare every file below a root with what is recorded of it, and delete what is broken with --repair",
        add_verify,
        _tool("verify"),
    ),
    "gc": OwnArguments(
        "show what no given config refers to, with bytes and age, and delete it with --yes", add_gc, _tool("gc")
    ),
    "export": OwnArguments(
        "write a feature set as npz files, or as Parquet for Hugging Face datasets, pandas and polars",
        add_export,
        _tool("export"),
    ),
    "merge-adapters": OwnArguments(
        "merge what a trial trained in its encoder into a file of weights, for encoder.weights",
        add_merge_adapters,
        _tool("merge_adapters"),
    ),
    "compare": OwnArguments(
        "write one page about several finished sweeps: best trials, scores, costs",
        add_compare,
        _tool("compare", "sweeps", "to"),
    ),
    "settings": OwnArguments(
        "print every setting: meaning, kind, default and choices",
        add_settings_key,
        _tool("settings", "key", "beginning"),
    ),
    "init": OwnArguments(
        "write a commented YAML for a folder of videos, a manifest, tars or a published data set",
        add_init,
        lambda parsed: _module("init").main(parsed, PRESETS[parsed.preset]),
    ),
    "manifest": OwnArguments(
        "list the videos of a folder, tars, lists or a published data set, and write them as a manifest",
        add_manifest,
        _tool("manifest"),
    ),
}
"""A new command is one entry here and one function that adds its arguments."""
