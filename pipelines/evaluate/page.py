"""Write the page about an evaluation, and its points as CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vidflow.config.schema import Config
from vidflow.report.evaluation import points_csv
from vidflow.report.evaluation_page import render_evaluation
from vidflow.report.gather import describe_machine
from vidflow.stages.address import Address
from vidflow.stages.evaluation.results import ModelResult
from vidflow.store.layout import STAGE_MANIFEST, list_file, publish, publish_json

PAGE = "report.html"
CSV = "points.csv"


def write_page(
    config: Config, results: Sequence[ModelResult], directory: Path, shards: Mapping[str, Address]
) -> list[Path]:
    """Write both files and return where they are, the page first.

    Args:
        config: The experiment.
        results: Its models.
        directory: Folder of the page.
        shards: Address of the shards of each model and square.
    """
    provenance = {
        **{f"fingerprint shards, {name}": address.fingerprint for name, address in shards.items()},
        **{f"weights {name}": model.weights for name, model in config.evaluate.models.items()},
        **describe_machine(),
    }
    texts = {
        PAGE: render_evaluation(config, results, provenance=provenance, csv=CSV),
        CSV: points_csv(results),
    }
    for name, text in texts.items():
        with publish(directory / name) as aside:
            aside.write_text(text, encoding="utf-8")
    publish_json(directory / STAGE_MANIFEST, {"files": [list_file(directory / name) for name in texts]})
    return [directory / name for name in texts]


__all__ = ["write_page"]
