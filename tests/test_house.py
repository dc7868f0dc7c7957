"""What keeps the code in shape: formatting, lint, types, import layers, and that the library needs no Ray."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from vidflow import models

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "format", "--check", "--no-cache"], ["ruff", "check", "--no-cache"], ["lint-imports"], ["mypy"]],
    ids=lambda command: " ".join(command),
)
def test_the_house_is_in_order(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_library_works_without_ray():
    names = [module.name for module in pkgutil.walk_packages([str(ROOT / "vidflow")], "vidflow.")]
    assert len(names) > 30
    code = f"import sys, importlib; sys.modules['ray'] = None\nfor name in {names}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_the_models_offer_is_there():
    assert set(models.__all__) == set(models._HOMES)
    for name in models.__all__:
        assert getattr(models, name).__name__ == name


def test_the_top_level_holds_what_it_should():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top == {"pyproject.toml", "pipelines", "vidflow", "conf", "tests", "infra", "README.md", "LICENSE"}
