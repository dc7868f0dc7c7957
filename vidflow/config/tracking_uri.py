"""Addresses of MLflow stores: the default one, which are safe, and how to show one without its password."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from vidflow.config.schema import Config
from vidflow.errors import ConfigError

# https://user:password@host, and ?token=... as in presigned addresses.
_USERINFO = re.compile(r"(?<=://)[^/?#\s\"']*@")
_SECRET_QUERY = re.compile(
    r"([?&][\w.-]*(?:password|passwd|secret|token|signature|credential|api[_-]?key)[\w.-]*=)[^&\s\"']*", re.IGNORECASE
)


def default_uri(root: str | Path) -> str:
    """Return the address of the sqlite store under an experiment's root."""
    return f"sqlite:///{Path(root).resolve() / 'mlflow.db'}"


def store_uri(config: Config) -> str:
    """Return the address of the store that keeps an experiment's runs."""
    return config.tracking.uri or default_uri(config.root)


def check_uri(uri: str, *, num_hosts: int) -> None:
    """Refuse addresses where runs could not be kept safely.

    Args:
        uri: `sqlite:///FILE`, or `http(s)://HOST` of an MLflow server.
        num_hosts: Machines that trials run on, at least 1.

    Raises:
        ConfigError: If the address is neither, or is sqlite although there are several hosts.
    """
    scheme = urlsplit(uri).scheme
    shown = without_credentials(uri)
    if scheme == "sqlite" and uri.removeprefix("sqlite:///") in ("", ":memory:", uri):
        raise ConfigError(f"tracking.uri: got {shown}, wanted sqlite:///FILE: runs must outlive the process")
    if scheme == "sqlite" and num_hosts > 1:
        raise ConfigError(
            f"tracking.uri: got {shown} with trials on {num_hosts} hosts, wanted the http:// address of an MLflow "
            "server: sqlite is safe on one machine only"
        )
    if scheme in ("sqlite", "http", "https"):
        return
    if scheme in ("", "file"):
        raise ConfigError(
            f"tracking.uri: got {shown}, a folder of files, which MLflow no longer writes; wanted sqlite:///FILE or "
            "the http:// address of an MLflow server (`mlflow migrate-filestore` converts old runs)"
        )
    raise ConfigError(
        f"tracking.uri: got {shown}, wanted sqlite:///FILE or the http:// address of an MLflow server; "
        "put a server before a database, so that its password stays there"
    )


def without_credentials(text: str) -> str:
    """Return text with user names, passwords and tokens cut out of every address in it."""
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("", text))
