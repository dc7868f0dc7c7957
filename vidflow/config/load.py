"""Load YAML files and `key=value` overrides as a `Config`, or raise one message with every problem."""

import dataclasses
import difflib
import io
import os
import types
import typing
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from vidflow.config.cross_checks import CROSS_CHECKS, PATHS
from vidflow.config.describe import find_settings
from vidflow.config.encoder import is_path
from vidflow.config.names import nearest_hint
from vidflow.config.paths import absolute_path, has_home
from vidflow.config.schema import Config, Trials, VideoModel
from vidflow.config.tracking_uri import (
    keep_credentials,
    may_hold_password,
    show_value,
    without_credentials,
)
from vidflow.errors import ConfigError
from vidflow.objects import is_object_url

_REQUIRED = "???"
"""OmegaConf's mark of a value that must be given."""
_MAX_VALUES = 100_000
_DESCRIPTORS = (Path("/dev/fd"), Path("/proc/self/fd"))
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# Exceptions of YAML and OmegaConf for text such as 2001-99-99, 0x, a thousand brackets or `a[b=1`.
_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """One layer of settings and where it came from."""

    name: str
    values: Any

    def sets(self, location: Sequence[str | int]) -> bool:
        """Return whether this layer sets the key at `location`."""
        node: Any = self.values
        for part in location:
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                return False
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """Settings as far as they are valid.

    Attributes:
        config: The settings; those that are not valid have their defaults.
        problems: What is wrong with the others; each begins with its key and a colon, or with its file.
        unsure: Keys whose value in `config` may not be what the user means.
        is_root_relative: Whether `root` was relative as the user wrote it; in `config` it is absolute.
    """

    config: Config
    problems: tuple[str, ...] = ()
    unsure: frozenset[str] = frozenset()
    is_root_relative: bool = False

    def is_sure(self, key: str) -> bool:
        """Return whether a setting, and everything below and above it, is what the user means."""
        return not any(f"{key}.".startswith(f"{each}.") or f"{each}.".startswith(f"{key}.") for each in self.unsure)


def load_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Merge files left to right, then overrides, and validate everything.

    Args:
        paths: YAML files; at least one.
        overrides: Settings such as `encoder.img_size=112`.

    Returns:
        The settings. `tracking.uri` has no user name and password: see `keep_credentials`.

    Raises:
        ConfigError: With every problem found, each with its file, key, value got and value wanted.
    """
    draft = draft_config(paths, overrides)
    if draft.problems:
        raise ConfigError(join_problems(draft.problems))
    return draft.config


def draft_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Draft:
    """Do as `load_config`, but return the problems together with the settings that are valid.

    So a caller can look for problems of other kinds before it reports all of them.

    Raises:
        ConfigError: If a file or an override cannot be read, so that nothing else can be known.
    """
    try:
        draft = _draft(_read_sources(paths, overrides))
    except ConfigError as error:
        # A mistyped setting may hold a password too. No chained error, because it holds the same values.
        raise ConfigError(without_credentials(str(error))) from None
    return dataclasses.replace(draft, problems=tuple(map(without_credentials, draft.problems)))


def _read_sources(paths: Sequence[Path], overrides: Sequence[str]) -> list[_Source]:
    sources: list[_Source] = []
    problems: list[str] = []
    for read in [
        *(partial(_read_yaml, path) for path in paths),
        *(partial(_read_override, text) for text in overrides),
    ]:
        try:
            sources.append(read())
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems[0] if len(problems) == 1 else join_problems(problems))
    return sources


def _draft(sources: Sequence[_Source]) -> Draft:
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(s.values) for s in sources)), resolve=True)
    except (*_UNREADABLE, OmegaConfBaseException) as error:
        reason = "in a value that is not shown, as it may hold a password" if may_hold_password(str(error)) else error
        raise ConfigError(f"settings cannot be merged: {reason}") from error
    if garbled := next(_find_garbled(merged), None):
        raise ConfigError(f"settings hold text that is not valid Unicode: {garbled}")
    required = _take_required(merged, sources)
    problems: dict[str, None] = dict.fromkeys(required.values())
    unsure: set[str] = set(required)
    while True:
        try:
            config = TypeAdapter(Config).validate_python(merged)
            break
        except ValidationError as error:
            problems |= dict.fromkeys(_explain(error, sources))
            removed = _remove_bad(merged, error)
            if not removed:
                raise ConfigError(join_problems(list(problems))) from error
            unsure |= removed
    draft = Draft(config, unsure=frozenset(unsure))
    for reads, find in CROSS_CHECKS:
        found = find(config) if all(map(draft.is_sure, reads)) else []
        problems |= dict.fromkeys(found)
        unsure |= {problem.partition(":")[0] for problem in found}
    return _resolve_paths_and_credentials(Draft(config, tuple(problems), frozenset(unsure)))


def _remove_bad(merged: Any, error: ValidationError) -> set[str]:
    """Remove the values that are not valid, and return the keys that do not have the value that the user means."""
    unsure, paths = set(), set()
    for item in error.errors(include_url=False):
        location = [part for part in item["loc"] if not _is_union_branch(part, item["loc"])]
        path = _existing_path(merged, location)
        if not path:
            continue
        paths.add(path)
        if item["type"] in _UNKNOWN:
            near = difflib.get_close_matches(str(path[-1]), _valid_names(path[:-1]), n=1)
            unsure.add(".".join(map(str, (*path[:-1], *near))))
        else:
            unsure.add(".".join(map(str, path)))
    for path in sorted(paths, key=len, reverse=True):
        parent = merged
        for part in path[:-1]:
            parent = parent[part]
        del parent[path[-1]]
    return unsure


def _existing_path(merged: Any, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Return the names of a location that exist; an entry of a list has no name."""
    path: list[str | int] = []
    for part in location:
        if not isinstance(merged, dict) or part not in merged:
            break
        path.append(part)
        merged = merged[part]
    return tuple(path)


def _take_required(node: Any, sources: Sequence[_Source], location: tuple[str, ...] = ()) -> dict[str, str]:
    """Take out the settings that a file marks with `???`, as it leaves them to the user; return key -> problem."""
    found: dict[str, str] = {}
    for name, value in list(node.items()) if isinstance(node, dict) else ():
        place = (*location, str(name))
        key = ".".join(place)
        if value == _REQUIRED:
            del node[name]
            origin = next((s.name for s in reversed(sources) if s.sets(place)), sources[0].name)
            found[key] = f"{origin}: {key}: required, as the file says `???`; give it: {_example_of(key)}"
        else:
            found |= _take_required(value, sources, place)
    return found


def _example_of(key: str) -> str:
    """Return how to give a setting on the command line, and what it means."""
    try:
        meaning = find_settings(key)[0].settings[0].meaning
    except ConfigError:  # no such setting, as a file may hold anything
        return f"`{key}=VALUE`"
    return f"`{key}={'PATH' if key in PATHS else 'VALUE'}`. {meaning}"


def _find_garbled(value: Any) -> Iterator[str]:
    """Yield the texts that cannot be written to a file, such as half of a surrogate pair."""
    if isinstance(value, str):
        if value != value.encode(errors="replace").decode():
            yield show_value(value)
    elif isinstance(value, dict):
        for item in value.items():
            yield from _find_garbled(list(item))
    elif isinstance(value, list):
        for item in value:
            yield from _find_garbled(item)


def _resolve_paths_and_credentials(draft: Draft) -> Draft:
    """Make paths absolute, because workers run in other folders, and remove the password from the address.

    Values that are not valid cannot be resolved: such paths stay, and such an address is removed.
    """
    config = draft.config
    video, encoder, tracking = config.video, config.encoder, config.tracking
    has_path = is_path(encoder.family, encoder.weights)

    def absolute(key: str, path: str) -> str:
        if is_object_url(path):
            return path.rstrip("/")
        return absolute_path(path) if draft.is_sure(key) else path

    resolved = dataclasses.replace(
        config,
        root=absolute("root", config.root),
        video=dataclasses.replace(
            video,
            manifest=absolute("video.manifest", video.manifest) if video.manifest else None,
            video_root=absolute("video.video_root", video.video_root) if video.video_root else None,
        ),
        encoder=dataclasses.replace(encoder, weights=absolute("encoder.weights", encoder.weights))
        if has_path
        else encoder,
        evaluate=dataclasses.replace(
            config.evaluate, models={name: _resolve_model(model) for name, model in config.evaluate.models.items()}
        ),
        trials=_resolve_trials(config.trials),
        tracking=dataclasses.replace(
            tracking, uri=keep_credentials(tracking.uri) if tracking.uri and draft.is_sure("tracking.uri") else None
        ),
    )
    is_relative = not config.root.startswith(("/", "~")) and "://" not in config.root
    return dataclasses.replace(draft, config=resolved, is_root_relative=is_relative)


def _resolve_trials(trials: Trials) -> Trials:
    """Make the paths absolute from which trials start, as trials run in folders of their own."""

    def absolute(source: Any) -> Any:
        if not isinstance(source, str) or is_object_url(source) or not has_home(source):
            return source
        return absolute_path(source) if os.sep in source or os.path.exists(source) else source

    axis = trials.axes.get("init_from")
    axes = (
        {**trials.axes, "init_from": [absolute(source) for source in axis]} if isinstance(axis, list) else trials.axes
    )
    trial = dataclasses.replace(trials.trial, init_from=absolute(trials.trial.init_from))
    return dataclasses.replace(trials, trial=trial, axes=axes)


def _resolve_model(model: VideoModel) -> VideoModel:
    has_path = is_path(model.family, model.weights)
    return dataclasses.replace(
        model,
        weights=absolute_path(model.weights) if has_path else model.weights,
        class_names={head: absolute_path(path) for head, path in model.class_names.items()},
    )


def read_stored_trials(path: Path) -> Trials:
    """Return the section `trials` of what `config_to_yaml` wrote, perhaps on another machine: no path is checked."""
    stored = OmegaConf.to_container(OmegaConf.load(path))
    return TypeAdapter(Config).validate_python(stored).trials


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return plain containers, as the merged YAML would hold them."""
    return dataclasses.asdict(config)


def config_to_yaml(config: Config) -> str:
    """Return the merged configuration as YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def _read_yaml(path: Path) -> _Source:
    # A shell passes `<(command)` as a pipe below /dev/fd. Reading any other pipe may block for ever.
    if path.exists() and not path.is_file() and path.parent not in _DESCRIPTORS and str(path) != "/dev/stdin":
        if path.is_dir():
            raise ConfigError(
                f"{path}: got a folder, wanted a YAML file; to make one for its videos: vidflow init {path}"
            )
        raise ConfigError(f"{path}: got a pipe or device, wanted a YAML file")
    try:
        text = path.read_text()
        _check_size(yaml.compose(text, yaml.CSafeLoader))
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except FileNotFoundError as error:
        if may_hold_password(str(path)):
            raise ConfigError(
                "command line: got an address, wanted a configuration file; write `tracking.uri=ADDRESS`"
            ) from None
        nearby = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"; did you mean {nearby[0]}?" if nearby else ""
        raise ConfigError(f"{path}: no such configuration file{hint}") from error
    except (OSError, *_UNREADABLE, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: wanted sections such as `video:` at the top, got {type(loaded).__name__}")
    return _Source(str(path), loaded)


def _check_size(node: yaml.Node | None) -> None:
    """Refuse YAML whose anchors expand to too many values: a few lines of `*name` can become billions.

    Raises:
        ValueError: If it expands to more than `_MAX_VALUES` values, or contains itself.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MAX_VALUES  # the size of a node that contains itself
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, flat))
        return sizes[id(node)]

    if node is not None and size(node) > _MAX_VALUES:
        raise ValueError(f"its anchors expand to more than {_MAX_VALUES} values")


def _read_override(text: str) -> _Source:
    key = text.partition("=")[0]
    if may_hold_password(text):
        if "://" in key:
            raise ConfigError("command line: got an address, wanted `key=value`; write `tracking.uri=ADDRESS`")
        name = f"command line ({key})"
    else:
        name = f"command line ({text})"
    try:
        return _Source(name, OmegaConf.to_container(OmegaConf.from_dotlist([text])))
    except (*_UNREADABLE, OmegaConfBaseException) as error:
        reason = "" if may_hold_password(text) else f": {error}"
        raise ConfigError(f"{name}: not `key=value`{reason}") from error


def _explain(error: ValidationError, sources: Sequence[_Source]) -> list[str]:
    problems: dict[str, list[str]] = {}
    items = [
        ([part for part in item["loc"] if not _is_union_branch(part, item["loc"])], item)
        for item in error.errors(include_url=False)
    ]
    # For an infinite number, leave out pydantic's errors for the other types that the setting accepts.
    infinite = [location for location, item in items if item["type"] == "finite_number"]
    for location, item in items:
        if location in infinite and item["type"] != "finite_number":
            continue
        key = ".".join(str(part) for part in location)
        origin = next((s.name for s in reversed(sources) if s.sets(location)), sources[0].name)
        if item["type"] in _UNKNOWN:
            names = _valid_names(location[:-1])
            problems[f"{origin}: {key}: no such setting"] = [nearest_hint(str(location[-1]), names)]
        else:
            # A union has a message for each of its kinds.
            wanted = problems.setdefault(f"{origin}: {key}: got {show_value(item['input'])}", [])
            wanted.append(f"{item['msg'][0].lower()}{item['msg'][1:]}")
    return [f"{what}; {', or '.join(dict.fromkeys(wanted))}" for what, wanted in problems.items()]


def _is_union_branch(part: str | int, location: Sequence[str | int]) -> bool:
    """Return whether a part is not a key, but the branch of a union that pydantic tried, such as `list[str]`."""
    return (
        part is not location[0]
        and isinstance(part, str)
        and ("[" in part or part in {"Range", "str", "int", "float", "bool", "constrained-float"})
    )


def _valid_names(location: Sequence[str | int]) -> list[str]:
    """Return the settings valid below `location`, by walking the schema."""
    node: Any = Config
    for part in location:
        is_section = dataclasses.is_dataclass(node)
        node = typing.get_type_hints(node)[str(part)] if is_section else typing.get_args(node)[-1]
        if isinstance(node, types.UnionType):
            node = next((a for a in typing.get_args(node) if dataclasses.is_dataclass(a)), node)
    return [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def join_problems(problems: Sequence[str]) -> str:
    """Return one message with all problems."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{count} in the configuration; nothing was started:", *(f"  - {p}" for p in problems)])
