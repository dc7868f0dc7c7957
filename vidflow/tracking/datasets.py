"""The data that a run was trained on, as MLflow shows it: name, digest, place, schema and counts of clips."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow.entities import Dataset, DatasetInput, InputTag

from vidflow.config.tracking_uri import without_credentials

_MAX_DIGEST = 36  # characters
_CONTEXT = "mlflow.data.context"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureData:
    """A feature set that runs read.

    Attributes:
        name: Its name in the config.
        identity: Digest of everything that decides its content.
        place: Its folder.
        embed_dim: Width of a token.
        clips: Split -> number of clips.
        num_classes: Classes of its labels; 0 if it has none.
        encoder: Name of the encoder that made it.
    """

    name: str
    identity: str
    place: str
    embed_dim: int = 0
    clips: Mapping[str, int] = field(default_factory=dict)
    num_classes: int = 0
    encoder: str = ""

    @property
    def digest(self) -> str:
        """The identity as MLflow takes it."""
        return self.identity[:_MAX_DIGEST]


def dataset_input(data: FeatureData) -> DatasetInput:
    """Return a feature set as an input of a run."""
    tokens = [_tensor("tokens", "float16", [-1, data.embed_dim]), _tensor("pts_seconds", "float64", [-1])]
    label = [_tensor("label", "int32", [-1])]
    schema = {"mlflow_tensorspec": {"features": json.dumps(tokens), "targets": json.dumps(label)}}
    profile = {
        "num_clips": sum(data.clips.values()),
        **{f"num_clips_{split}": count for split, count in data.clips.items()},
        "num_classes": data.num_classes,
        "encoder": data.encoder,
    }
    dataset = Dataset(
        name=data.name,
        digest=data.digest,
        source_type="local",
        source=json.dumps({"uri": without_credentials(data.place)}),
        schema=json.dumps(schema),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(_CONTEXT, ", ".join(data.clips))] if data.clips else [])


def _tensor(name: str, dtype: str, shape: list[int]) -> dict[str, object]:
    return {"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}
