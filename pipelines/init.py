"""Write a YAML to start from: `vidflow init SOURCE`."""

import argparse
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.manifest import describe, read, root_of
from vidflow.config.describe import ANY_NAME, describe_sections, find_settings
from vidflow.config.load import load_config
from vidflow.config.tasks import facts_of
from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.stages.wanted_rows import check_rows
from vidflow.video.folder import FOLDER_RULE
from vidflow.video.manifest import SUFFIXES, write_manifest

# A link to conf/, so that a wheel contains the presets.
_PRESETS = Path(__file__).parent / "presets"
_WIDTH = 112
_RANDOM = (
    "The encoder has RANDOM weights: enough to try things without a network, not for results. A real encoder: "
    "encoder.name=vit_small_patch16_dinov3.lvd1689m encoder.weights=hub encoder.mean=null encoder.std=null"
)
_HUB = (
    "The first run downloads the encoder's weights from the Hugging Face hub. Without a network, add "
    "encoder.weights=random:0 to the command: random weights, enough to try things, not for results."
)
_HELP = "`vidflow settings` explains every setting; `vidflow plan` forecasts time and space."


def main(parsed: argparse.Namespace, file: str) -> None:
    """Write the YAML and, unless the source is a manifest, a manifest. Write nothing if a run of them would be refused.

    Args:
        parsed: Arguments of the command: those of `add_source`, the preset and the output.
        file: Name of the preset's file in conf/.

    Raises:
        ConfigError: If the source cannot be used, or a file would be overwritten.
    """
    source, preset = parsed.source, parsed.preset
    is_manifest = parsed.format in (None, "manifest") and source.suffix.lower() in SUFFIXES and not source.is_dir()
    output = parsed.output or Path(f"{source.absolute().name if source.is_dir() else source.stem}.yaml")
    manifest = source if is_manifest else output.with_suffix(".csv")
    new = [output] if is_manifest else [output, manifest]
    _check_new(output, new)
    try:
        listing = read(parsed)
        if not is_manifest:
            write_manifest(manifest, listing.items)
        root = parsed.video_root if is_manifest else root_of(listing.items, manifest)
        values = _use_videos(yaml.safe_load((_PRESETS / file).read_text()), output, manifest, root, listing.items)
        facts = describe(listing)
        if values["encoder"]["weights"].startswith("random:"):
            facts.append(_RANDOM)
        if values["encoder"]["weights"] == "hub":
            facts.append(_HUB)
        head = [f"Made by `vidflow init` from {source.absolute()} with the preset {preset}.", *facts, _HELP]
        lines = [
            f"# {shlex.join(['vidflow', 'run', str(output)])}",
            "#",
            *(line for text in head for line in _format_comment(text)),
            "",
            *_format_yaml(values),
        ]
        output.write_text("\n".join([*lines, ""]))
        check_rows(load_config([output]), listing.items, listing.rejects)
    except ConfigError as error:
        for path in new:
            path.unlink(missing_ok=True)
        layout = f"\n{FOLDER_RULE}" if source.is_dir() else ""
        raise ConfigError(
            f"{source}: not usable with the preset {preset}; nothing was written:\n{error}{layout}"
        ) from error
    print(
        "\n".join(
            [
                f"wrote {' and '.join(map(str, new))}",
                *facts,
                f"next: {shlex.join(['vidflow', 'run', str(output)])} (vidflow plan says how long it takes)",
            ]
        )
    )


def _check_new(output: Path, new: Sequence[Path]) -> None:
    if output.suffix not in (".yaml", ".yml") or not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: got {output}, wanted FILE.yaml in a folder that exists")
    if existing := [str(path) for path in new if path.exists()]:
        raise ConfigError(f"{' and '.join(existing)}: exists already; choose another name with --output FILE.yaml")


def _use_videos(
    values: dict[str, Any], output: Path, manifest: Path, root: Path | None, items: Sequence[VideoItem]
) -> dict[str, Any]:
    """Return a preset with the given videos instead of rendered ones."""
    name = re.sub(r"[^\w.-]+", "_", output.stem)
    video = {"manifest": str(manifest.absolute())}
    if root is not None:
        video["video_root"] = str(root.absolute())
    values["video"] = values["video"] | video
    values["video"].pop("synthetic", None)
    values["root"] = f"runs/{name}"
    values["report"] = values.get("report", {}) | {"title": name}
    values["tracking"] = values.get("tracking", {}) | {"experiment": name}
    axes = values["trials"]["axes"]
    if "task" in axes and not any(item.label for item in items):
        axes["task"] = [task for task in axes["task"] if not facts_of(task).needs_labels]
    return values


def _format_yaml(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the lines of a YAML file, with the meaning of every setting above it."""
    sections = {section.key: section.meaning for section in describe_sections()}
    margin = "  " * prefix.count(".")
    for key, value in values.items():
        place = f"{prefix}{key}"
        meaning = sections.get(place) or sections.get(f"{place}.{ANY_NAME}")
        if not prefix and meaning:
            yield ""
        if meaning is None:
            setting = find_settings(place)[0].settings[0]
            unit = f"; {setting.unit}" if setting.unit else ""
            yield from _format_comment(f"{setting.meaning} [{setting.kind}{unit}]", margin)
            yield f"{margin}{key}: {_format_value(value)}"
            continue
        yield from _format_comment(
            meaning if place in sections else f"{meaning} See `vidflow settings {place}`.", margin
        )
        yield f"{margin}{key}:"
        if place in sections:
            yield from _format_yaml(value, f"{place}.")
        else:  # names that the user chooses
            yield from (f"{margin}  {name}: {_format_value(each)}" for name, each in value.items())


def _format_comment(text: str, margin: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}# ", break_on_hyphens=False
    )


def _format_value(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text[1:-2]


__all__ = ["main"]
