"""Which MLflow stores are accepted, and how their addresses are shown."""

import pytest

from vidflow.config.tracking_uri import check_uri, without_credentials
from vidflow.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:pw@db:5432/x", "postgresql://db:5432/x"),
        ("uri: 'http://u@h/p' # a@b", "uri: 'http://h/p' # a@b"),
        ("s3://bucket/a@b.csv", "s3://bucket/a@b.csv"),
        ("https://h/x?a=1&X-Amz-Signature=abc&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("http://u:p@ss@h", "http://h"),
        ("sqlite:////a/mlflow.db", "sqlite:////a/mlflow.db"),
    ],
)
def test_credentials_are_cut_out_of_addresses_and_nothing_else_is(text: str, clean: str) -> None:
    assert without_credentials(text) == clean


@pytest.mark.parametrize(
    ("uri", "num_hosts", "complaint"),
    [
        ("sqlite:////data/mlflow.db", 2, "trials on 2 hosts"),
        ("sqlite:///:memory:", 1, "outlive"),
        ("sqlite://", 1, "outlive"),
        ("file:///data/mlruns", 1, "a folder of files"),
        ("mlruns", 1, "a folder of files"),
        ("postgresql://me:pw@db/x", 1, "got postgresql://db/x, wanted"),
    ],
)
def test_an_unsafe_store_is_refused_with_what_to_do(uri: str, num_hosts: int, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        check_uri(uri, num_hosts=num_hosts)
    assert str(caught.value).startswith("tracking.uri: got ")
    assert "http:// address of an MLflow server" in str(caught.value) or "sqlite:///FILE" in str(caught.value)


@pytest.mark.parametrize(("uri", "num_hosts"), [("sqlite:////d/mlflow.db", 1), ("http://h:5000", 9), ("https://h", 2)])
def test_a_safe_store_is_accepted(uri: str, num_hosts: int) -> None:
    check_uri(uri, num_hosts=num_hosts)
