"""What tests share: the folder of optional material, small fixtures, and the order in which files take their turns."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The test processes take the cores. Of tiny operations, two threads wait for each other, and the order of additions,
# and so the last bit, depends on their number.
os.environ["OMP_NUM_THREADS"] = "1"

# The files that take longest, longest first: a test process takes whole files, and one that took such a file last
# would keep the others waiting.
LONGEST = (
    "pipelines/test_run.py",
    "test_house.py",
    "models/encoder/test_reduced_vit.py",
    "pipelines/plan/test_plan.py",
    "pipelines/test_shards_again.py",
    "pipelines/test_predict_command.py",
    "pipelines/test_entry.py",
    "pipelines/bench/test_bench.py",
    "models/encoder/test_pruned_frames.py",
    "stages/test_predict.py",
    "pipelines/test_bad_inputs.py",
    "pipelines/test_bad_annotations.py",
    "pipelines/test_cli.py",
    "pipelines/test_rejects.py",
    "report/test_page.py",
    "training/test_snapshot.py",
    "report/test_figures.py",
    "models/encoder/test_encoder.py",
    "video/test_exact_frames.py",
    "models/tasks/test_tasks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and give slow tests time: they start many processes, and all share the cores."""
    for item in items:
        if item.get_closest_marker("slow") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))
    turns = {Path(__file__).parent / name: turn for turn, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of optional test material; the test is skipped where there is none."""
    path = Path(os.environ.get("VIDFLOW_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"optional test material not found at {path}; set VIDFLOW_SHARED")
    return path
