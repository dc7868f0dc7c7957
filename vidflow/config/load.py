"""From YAML files and `key=value` overrides to a `Config`, or to one message with every problem."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates
from vidflow.config.tracking_uri import check_uri, store_uri
from vidflow.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """One layer of settings and where it came from."""

    name: str
    values: Any

    def sets(self, location: Sequence[str | int]) -> bool:
        """Whether this layer names the key at `location`."""
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

    Raises:
        ConfigError: With every problem found, each with its file, key, value got and value wanted.
    """
    sources = [_read_yaml(path) for path in paths] + [_read_override(text) for text in overrides]
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(s.values) for s in sources)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"settings cannot be merged: {error}") from error
    try:
        config = TypeAdapter(Config).validate_python(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, sources)) from error
    problems = _cross_checks(config)
    if problems:
        raise ConfigError(_join(problems))
    return _with_absolute_paths(config)


def _with_absolute_paths(config: Config) -> Config:
    """Resolve paths here, once: workers run in other folders."""
    video, encoder = config.video, config.encoder
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
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return plain containers, as the merged YAML would hold them."""
    return dataclasses.asdict(config)


def config_to_yaml(config: Config) -> str:
    """Return the merged configuration as YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def _read_yaml(path: Path) -> _Source:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        nearby = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"; did you mean {nearby[0]}?" if nearby else ""
        raise ConfigError(f"{path}: no such configuration file{hint}") from error
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: wanted sections such as `video:` at the top, got {type(loaded).__name__}")
    return _Source(str(path), loaded)


def _read_override(text: str) -> _Source:
    try:
        return _Source(f"command line ({text})", OmegaConf.to_container(OmegaConf.from_dotlist([text])))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"command line: {text!r} is not `key=value`: {error}") from error


def _explain(error: ValidationError, sources: Sequence[_Source]) -> str:
    problems = []
    for item in error.errors():
        location = [part for part in item["loc"] if not _is_union_branch(part, item["loc"])]
        key = ".".join(str(part) for part in location)
        origin = next((s.name for s in reversed(sources) if s.sets(location)), sources[0].name)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            names = _valid_names(location[:-1])
            nearest = difflib.get_close_matches(str(location[-1]), names, n=1)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"valid here: {', '.join(names)}"
            problems.append(f"{origin}: {key}: no such setting; {hint}")
        else:
            problems.append(f"{origin}: {key}: got {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}")
    return _join(problems)


def _is_union_branch(part: str | int, location: Sequence[str | int]) -> bool:
    """Pydantic names the branch of a union it tried, such as `list[str]`; it is no key of the user's."""
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
    """Return what single fields cannot see."""
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
            problems.append(f"features.{name}: a name has letters, digits, `-` and `_` only")
    return problems


def _source_problems(config: Config) -> list[str]:
    problems = []
    if config.video.manifest is not None and not Path(config.video.manifest).expanduser().is_file():
        problems.append(f"video.manifest: no such file: {config.video.manifest}")
    weights = config.encoder.weights
    if weights != "hub" and not weights.startswith("random:") and not Path(weights).expanduser().is_file():
        problems.append(f"encoder.weights: got {weights!r}, wanted `hub`, `random:SEED` or an existing file")
    if weights.startswith("random:") and not weights.removeprefix("random:").isdigit():
        problems.append(f"encoder.weights: got {weights!r}, wanted a whole number after `random:`")
    return problems


def _tracking_problems(config: Config) -> list[str]:
    try:
        check_uri(store_uri(config), num_hosts=1)
    except ConfigError as error:
        return [str(error)]
    return []


def _join(problems: Sequence[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{count} in the configuration; nothing was started:", *(f"  - {p}" for p in problems)])
