"""Addresses of MLflow stores: make the default, refuse unsafe ones, print them without passwords."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vidflow.config.roots import root_path
from vidflow.config.schema import Config
from vidflow.errors import ConfigError

# https://user:password@host. A password may hold characters that end a host, such as `/`. So everything from `user:` to
# the last `@` of the word is secret, unless a port follows the colon.
_USERINFO = re.compile(
    r"""(?<=://)(?:[^/?#\s"'@:]*:(?!\d+(?:[/?#\s"',;)\]}]|$))[^\s"']*@|[^/?#\s"']*@)"""
    # The same without a scheme.
    r"""|(?<![\w:/.@%~-])[\w.%~+-]+:[^\s"'/@]+@(?=[\w\[])"""
)
# ?token=..., as in presigned addresses.
_SECRET_QUERY = re.compile(
    r"([?&][\w.-]*(?:password|passwd|secret|token|signature|credential|api[_-]?key)[\w.-]*=)[^&\s\"']*", re.IGNORECASE
)


_MAX_SHOWN = 200

# Characters that break an address when MLflow appends paths to it or parses a file name out of it.
_MARKS = {"http": "?# ", "https": "?# ", "sqlite": "?#%"}


def default_uri(root: str | Path) -> str:
    """Return the address of the sqlite store under an experiment's root."""
    return f"sqlite:///{Path(root).resolve() / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path:
    """Return the file of a `sqlite:///FILE` address."""
    return Path(uri.removeprefix("sqlite:///")).resolve()


def store_uri(config: Config) -> str:
    """Return the address of the store that keeps an experiment's runs."""
    return config.tracking.uri or default_uri(root_path(config))


def check_uri(uri: str, *, num_hosts: int) -> None:
    """Refuse addresses that cannot store runs safely.

    Args:
        uri: `sqlite:///FILE`, or `http(s)://HOST` of an MLflow server.
        num_hosts: Machines that trials run on, at least 1.

    Raises:
        ConfigError: If the address is neither, or is sqlite and there are several hosts.
    """
    shown = without_credentials(uri)
    if "@" in shown:  # the rest of a password that holds spaces or quotes
        shown = "an address that is not shown, as it may hold a password"
    try:
        parts = urlsplit(uri)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        reason = "" if "@" in uri else f": {error}"
        raise ConfigError(f"tracking.uri: got {shown}, which is not an address{reason}") from None
    if marks := [mark for mark in _MARKS.get(scheme, "") if mark in uri]:
        raise ConfigError(
            f"tracking.uri: got {shown}, wanted an address without {' or '.join(map(repr, marks))}; a token goes into "
            "MLFLOW_TRACKING_TOKEN"
        )
    if scheme in ("http", "https") and not host:
        raise ConfigError(f"tracking.uri: got {shown}, wanted a host, as in http://HOST:5000")
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
        "to use a database, start a server in front of it, which keeps the password"
    )


def split_credentials(uri: str) -> tuple[str, tuple[str, str] | None]:
    """Return a server's address without user name and password, and the two; None if it has neither.

    Raises:
        ConfigError: If it has only one of the two.
    """
    if not re.match(r"https?://", uri, re.IGNORECASE) or "@" not in uri:
        return uri, None
    scheme, rest = uri.split("://", 1)
    userinfo, host = rest.rsplit("@", 1)
    user, _, password = userinfo.partition(":")
    if not user or not password or any(mark in userinfo for mark in "/?#"):
        raise ConfigError(
            f"tracking.uri: got {scheme}://{without_credentials(host)} with a prefix that is not USER:PASSWORD@; "
            "wanted both, with %2F for `/`, %3F for `?` and %23 for `#`, or set both in the environment, as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return f"{scheme}://{host}", (unquote(user), unquote(password))


def keep_credentials(uri: str) -> str:
    """Move user name and password of a server's address into this process's environment, where MLflow reads them.

    The returned address has no password, so it may be shown, stored and sent to other hosts.

    Raises:
        ConfigError: If it has only one of the two.
    """
    bare, credentials = split_credentials(uri)
    if credentials is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = credentials
    return bare


def may_hold_password(text: str) -> bool:
    """Return whether text could be an address with a password, even a mistyped one, and must not be printed."""
    return ("@" in text and ":" in text) or ("://" in text and "?" in text)


def show_value(value: Any) -> str:
    """Return a value as short text for a message; a value that may hold a password is not shown."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    if may_hold_password(text):
        return "a value that is not shown, as it may hold a password"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def without_credentials(text: str) -> str:
    """Return text with user names, passwords and tokens removed from every address in it."""
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("", text))
