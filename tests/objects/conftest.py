"""An object store for this process, behind a proxy that can misbehave."""

from pathlib import Path

import pytest
from object_server import BUCKET, Proxy, environment, misbehaving, serve_objects

from vidflow.objects import mirror_path, remote


@pytest.fixture(scope="session")
def object_port():
    with serve_objects() as port:
        yield port


@pytest.fixture
def proxy(object_port, monkeypatch):
    with misbehaving(object_port) as proxy:
        for name, value in environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        remote._connect.cache_clear()  # of the server before
        yield proxy
    remote._connect.cache_clear()


@pytest.fixture
def root(proxy: Proxy, tmp_path: Path) -> Path:
    """The mirror of an empty prefix."""
    return mirror_path(f"s3://{BUCKET}/{tmp_path.name}", tmp_path / "cache")
