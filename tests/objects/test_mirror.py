import subprocess
from pathlib import Path

import pytest

from vidflow.objects import is_mirror, is_object_url, mirror_path, object_url, show_urls, to_path


@pytest.mark.parametrize("url", ["s3://bucket/runs/a b", "gs://bucket", "s3://bucket/s3:/odd", "gs://b-1.x/ü/v.mp4"])
def test_a_path_says_by_itself_which_object_it_is(url):
    path = mirror_path(url, Path("/data/cache"))
    assert is_object_url(url)
    assert is_mirror(path)
    assert is_mirror(path / "child")
    assert object_url(path) == url
    assert object_url(path / "child") == f"{url}/child"
    assert path.is_relative_to("/data/cache")


@pytest.mark.parametrize("place", ["/data/runs", "runs/demo", "s3:/merged", "/data/my-s3:/x", "/a/s3/bucket", "C:/x"])
def test_a_path_on_a_disk_is_no_mirror(place):
    assert not is_object_url(place)
    assert not is_mirror(place)
    assert to_path(place) == Path(place)


def test_people_see_addresses_instead_of_mirrors():
    path = mirror_path("s3://bucket/runs/x", Path("/home/me/.cache/vidflow"))
    assert (
        show_urls(f"12:00 '{path}/a.tar': gone; see {path}")
        == "12:00 's3://bucket/runs/x/a.tar': gone; see s3://bucket/runs/x"
    )
    assert show_urls("s3://bucket/x at 12:00, /data/s3 and /x") == "s3://bucket/x at 12:00, /data/s3 and /x"


def test_one_file_alone_speaks_to_object_stores():
    sources = Path(__file__).parents[2]
    found = subprocess.run(
        ["grep", "-rlE", r"pyarrow(\.fs| import .*\bfs\b)", "vidflow", "pipelines", "--include=*.py"],
        cwd=sources,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found == ["vidflow/objects/remote.py"]
