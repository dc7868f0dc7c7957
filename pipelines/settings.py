"""Print the settings: `vidflow settings` prints all, `vidflow settings KEY` prints one with its choices."""

import dataclasses
import importlib
import textwrap
from collections.abc import Iterator, Sequence

from vidflow.config.choices import Choice, Setting
from vidflow.config.describe import Section, describe_sections, find_settings
from vidflow.config.names import nearest_hint
from vidflow.errors import ConfigError

_WIDTH = 112
# Where the meaning starts in the list of all settings.
_COLUMN = 44
_ENCODER = "encoder.name"


def main(key: str | None, beginning: str | None) -> None:
    """Print all settings, or those of one key.

    Args:
        key: Dotted name of a setting or a section; None prints all.
        beginning: Print only the choices that begin with this text; for encoders, those that contain it.

    Raises:
        ConfigError: If there is no such setting or choice; the message has the nearest.
    """
    if key is None:
        print("\n".join(_format_overview()))
    elif key == _ENCODER and beginning is not None:
        print("\n".join(_list_encoders(beginning)))
    else:
        settings = [setting for section in find_settings(key) for setting in section.settings]
        print("\n".join(line for setting in _filter_choices(settings, beginning) for line in _format_details(setting)))


def _format_overview() -> Iterator[str]:
    yield "Every setting with its default. `vidflow settings KEY` explains its choices; KEY may be a section."
    yield "NAME stands for the name of a feature set (any name) or of an axis (a field of `trials.trial`)."
    for section in describe_sections():
        if section.settings:
            yield from _format_heading(section)
            for setting in section.settings:
                yield from _format_row(setting)


def _format_heading(section: Section) -> Iterator[str]:
    yield ""
    yield from _wrap(f"{section.key}: {section.meaning}" if section.key else section.meaning)


def _format_row(setting: Setting) -> Iterator[str]:
    left = f"  {_with_default(setting)}"
    lines = textwrap.wrap(f"{setting.meaning} {_format_kind(setting)}", _WIDTH - _COLUMN)
    if len(left) >= _COLUMN:
        yield left
        left = ""
    for line in lines:
        yield f"{left:<{_COLUMN}}{line}"
        left = ""


def _with_default(setting: Setting) -> str:
    return f"{setting.key} = {setting.default}" if setting.default else setting.key


def _format_kind(setting: Setting) -> str:
    return f"[{setting.kind}; {setting.unit}]" if setting.unit else f"[{setting.kind}]"


def _filter_choices(settings: Sequence[Setting], beginning: str | None) -> Sequence[Setting]:
    """Return the settings with the choices that begin with a text; without a text, with all choices.

    Raises:
        ConfigError: If no choice begins with it.
    """
    if beginning is None:
        return settings
    chosen = [
        dataclasses.replace(setting, choices=choices)
        for setting in settings
        if (choices := tuple(choice for choice in setting.choices if choice.word.startswith(beginning)))
    ]
    if not chosen:
        words = [choice.word for setting in settings for choice in setting.choices]
        hint = nearest_hint(beginning, list(dict.fromkeys(words))) if words else "it has no choices"
        raise ConfigError(f"{settings[0].key}: no choice begins with {beginning!r}; {hint}")
    return chosen


def _format_details(setting: Setting) -> Iterator[str]:
    yield from _wrap(_with_default(setting))
    yield from _wrap(f"{setting.meaning} {_format_kind(setting)}", indent=2)
    described: dict[tuple[Setting, ...], str] = {}
    for choice in setting.choices:
        yield from _format_choice(choice)
        if choice.settings in described:
            yield f"    Settings: those of {described[choice.settings]}."
            continue
        if choice.settings:
            described[choice.settings] = _format_name(choice)
        for own in choice.settings:
            yield from _wrap(f"- {_with_default(own)}  {own.meaning} {_format_kind(own)}", indent=4, hang=2)
            for word in own.choices:
                yield from _format_choice(word, indent=10)
    if setting.key == _ENCODER:
        yield f"  `vidflow settings {_ENCODER} dinov3` lists timm's models with `dinov3` in their names."
    yield ""


def _format_choice(choice: Choice, *, indent: int = 2) -> Iterator[str]:
    yield from _wrap(f"{_format_name(choice)}: {choice.meaning}", indent=indent, hang=2)
    if choice.source:
        yield from _wrap(f"Source: {choice.source}", indent=indent + 2)


def _format_name(choice: Choice) -> str:
    return f"{choice.word} (at {choice.place})" if choice.place else choice.word


def _wrap(text: str, *, indent: int = 0, hang: int = 0) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + hang))


def _list_encoders(part: str) -> Iterator[str]:
    # Imported only for this key, because importing timm takes seconds.
    names = importlib.import_module("vidflow.models.encoder").list_encoders(part)
    if not names:
        raise ConfigError(
            f"{_ENCODER}: timm has no vision transformer with {part!r} in its name; try `dinov2` or `siglip`"
        )
    width = max(len(name) for name, _ in names)
    yield f"{_ENCODER}: vision transformers of timm with {part!r} in their names"
    for name, has_weights in names:
        yield f"  {name:<{width}}  {'weights: hub' if has_weights else 'not on the hub'}"


__all__ = ["main"]
