"""Load YAML files and `key=value` overrides as a `Config`, or raise one message with every problem."""

import dataclasses
import difflib
import io
import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from vidflow.config.names import nearest_hint
from vidflow.config.paths import NO_URLS, folder_problem, has_home, is_file, is_url, nearest_existing
from vidflow.config.schema import Config, Trials
from vidflow.config.search import draw_candidates
from vidflow.config.tracking_uri import (
    check_uri,
    keep_credentials,
    may_hold_password,
    split_credentials,
    sqlite_file,
    store_uri,
    without_credentials,
)
from vidflow.errors import ConfigError

_MAX_VALUES = 100_000
_MAX_SHOWN = 200
_MAX_PATH = 4096
_DESCRIPTORS = (Path("/dev/fd"), Path("/proc/self/fd"))
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
    try:
        return _load(paths, overrides)
    except ConfigError as error:
        # A mistyped setting may hold a password too. No chained error, because it holds the same values.
        raise ConfigError(without_credentials(str(error))) from None


def _load(paths: Sequence[Path], overrides: Sequence[str]) -> Config:
    sources = [_read_yaml(path) for path in paths] + [_read_override(text) for text in overrides]
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(s.values) for s in sources)), resolve=True)
    except (*_UNREADABLE, OmegaConfBaseException) as error:
        reason = "in a value that is not shown, as it may hold a password" if may_hold_password(str(error)) else error
        raise ConfigError(f"settings cannot be merged: {reason}") from error
    if garbled := next(_find_garbled(merged), None):
        raise ConfigError(f"settings hold text that is not valid Unicode: {garbled}")
    try:
        config = TypeAdapter(Config).validate_python(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, sources)) from error
    problems = _cross_checks(config)
    if problems:
        raise ConfigError(_join_problems(problems))
    return _resolve_paths_and_credentials(config)


def _find_garbled(value: Any) -> Iterator[str]:
    """Yield the texts that cannot be written to a file, such as half of a surrogate pair."""
    if isinstance(value, str):
        if value != value.encode(errors="replace").decode():
            yield _show_value(value)
    elif isinstance(value, dict):
        for item in value.items():
            yield from _find_garbled(list(item))
    elif isinstance(value, list):
        for item in value:
            yield from _find_garbled(item)


def _resolve_paths_and_credentials(config: Config) -> Config:
    """Make paths absolute, because workers run in other folders, and remove the password from the address."""
    video, encoder, tracking = config.video, config.encoder, config.tracking
    is_file = encoder.weights != "hub" and not encoder.weights.startswith("random:")
    return dataclasses.replace(
        config,
        root=_absolute(config.root),
        video=dataclasses.replace(
            video,
            manifest=_absolute(video.manifest) if video.manifest else None,
            video_root=_absolute(video.video_root) if video.video_root else None,
        ),
        encoder=dataclasses.replace(encoder, weights=_absolute(encoder.weights)) if is_file else encoder,
        tracking=dataclasses.replace(tracking, uri=keep_credentials(tracking.uri)) if tracking.uri else tracking,
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


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
        raise ConfigError(f"{path}: got a folder, pipe or device, wanted a YAML file")
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


def _explain(error: ValidationError, sources: Sequence[_Source]) -> str:
    problems = []
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
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            names = _valid_names(location[:-1])
            problems.append(f"{origin}: {key}: no such setting; {nearest_hint(str(location[-1]), names)}")
        else:
            problems.append(
                f"{origin}: {key}: got {_show_value(item['input'])}; {item['msg'][0].lower()}{item['msg'][1:]}"
            )
    return _join_problems(list(dict.fromkeys(problems)))


def _show_value(value: Any) -> str:
    """Return a value as short text for a message; a value that may hold a password is not shown."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    if may_hold_password(text):
        return "a value that is not shown, as it may hold a password"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _is_union_branch(part: str | int, location: Sequence[str | int]) -> bool:
    """Return whether a part is not a key, but the branch of a union that pydantic tried, such as `list[str]`."""
    return (
        part is not location[0]
        and isinstance(part, str)
        and ("[" in part or part in {"Range", "str", "int", "float", "bool"})
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


def _cross_checks(config: Config) -> list[str]:
    """Return the problems that concern more than one field."""
    return [
        *draw_candidates(config)[1],
        *_feature_problems(config),
        *_source_problems(config),
        *_tracking_problems(config),
    ]


def _feature_problems(config: Config) -> list[str]:
    problems = []
    if config.encoder.img_size > config.video.size:
        problems.append(
            f"encoder.img_size: got {config.encoder.img_size}, wanted at most video.size = {config.video.size}: "
            "frames are never enlarged; set both"
        )
    if not config.features:
        problems.append("features: got none, wanted at least one feature set, such as `base: {depths: [-1]}`")
    for name, features in config.features.items():
        if len(set(features.depths)) != len(features.depths) or not features.depths:
            problems.append(f"features.{name}.depths: got {features.depths}, wanted different block numbers")
        if not name.replace("_", "").replace("-", "").isalnum():
            problems.append(f"features.{name}: a name may hold letters, digits, `-` and `_` only")
    return problems


def _source_problems(config: Config) -> list[str]:
    problems = _path_problems(config)
    if problems:
        return problems
    if config.video.manifest is not None and not is_file(config.video.manifest):
        problems.append(f"video.manifest: no such file: {_show_value(config.video.manifest)}")
    weights = config.encoder.weights
    if weights != "hub" and not weights.startswith("random:") and not is_file(weights):
        problems.append(f"encoder.weights: got {_show_value(weights)}, wanted `hub`, `random:SEED` or an existing file")
    if weights.startswith("random:") and not re.fullmatch(r"random:[0-9]{1,18}", weights):
        problems.append(f"encoder.weights: got {_show_value(weights)}, wanted a whole number after `random:`")
    return problems


def _path_problems(config: Config) -> list[str]:
    """Return the problems of paths that their text shows, and of a root that is not a folder."""
    paths = {
        "root": config.root,
        "video.manifest": config.video.manifest,
        "video.video_root": config.video.video_root,
        "encoder.weights": config.encoder.weights,
    }
    problems = []
    for key, path in paths.items():
        if path is None:
            continue
        if is_url(path):
            problems.append(f"{key}: got {_show_value(path)}, wanted a path on a disk: {NO_URLS}")
        elif any(ord(letter) < ord(" ") for letter in path) or not path:
            problems.append(f"{key}: got {_show_value(path)}, wanted a path without control characters")
        elif len(os.fsencode(path)) >= _MAX_PATH:
            problems.append(f"{key}: got a path of {len(path)} letters, wanted fewer than {_MAX_PATH}")
        elif path.startswith("~") and not has_home(path):
            problems.append(f"{key}: got {_show_value(path)}, wanted a user who has a home folder behind `~`")
    if problems:
        return problems
    root = Path(_absolute(config.root))
    # MLflow and Tune put the folder's name into addresses and parse it out of them again.
    if marks := [mark for mark in "%?#" if mark in str(root)]:
        problems.append(
            f"root: got {_show_value(str(root))}, wanted a path without {' or '.join(f'`{mark}`' for mark in marks)}"
        )
    if (nearest := nearest_existing(root)) is not None and not nearest.is_dir():
        problems.append(f"root: {nearest} is a file, wanted a folder")
    return problems


def writing_problem(config: Config) -> str | None:
    """Return why nothing can be written under the root or beside the sqlite file; None if writing works."""
    uri = store_uri(config)
    places = {"root": Path(config.root)}
    if uri.startswith("sqlite:"):
        places["tracking.uri"] = sqlite_file(uri).parent
    for key, path in places.items():
        nearest = nearest_existing(path) or path
        if (problem := folder_problem(nearest)) is not None:
            return f"{key}: {problem}; wanted a folder that you may write to, on a disk with free space"
    return None


def _tracking_problems(config: Config) -> list[str]:
    if config.tracking.uri is None:
        return []
    try:
        uri, _ = split_credentials(config.tracking.uri)
        check_uri(uri, num_hosts=1)
    except ConfigError as error:
        return [str(error)]
    return []


def _join_problems(problems: Sequence[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{count} in the configuration; nothing was started:", *(f"  - {p}" for p in problems)])
