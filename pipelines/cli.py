"""The `vidflow` command."""

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.commands import OWN_ARGUMENTS
from pipelines.entry import Run, add_settings, add_show, exit_code, run_command, start
from vidflow import __version__
from vidflow.config.names import nearest_hint

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


if __name__ == "__main__":
    main()
