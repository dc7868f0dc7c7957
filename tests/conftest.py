"""What tests share: the folder of optional material and small fixtures."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of optional test material; the test is skipped where there is none."""
    path = Path(os.environ.get("VIDFLOW_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"optional test material not found at {path}; set VIDFLOW_SHARED")
    return path
