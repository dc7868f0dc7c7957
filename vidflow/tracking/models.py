"""A trial's model in MLflow: code as text, the weights, and what goes in and comes out."""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "model"
"""Name of a run's model, as in `runs:/RUN_ID/model`. Its weights are in `artifacts/` below it, and nowhere else."""
_MODEL_FILE = "trial"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCode:
    """How MLflow makes a model from its file.

    Attributes:
        name: Name of a Python file that calls `serve_model`.
        script: Its text, which is stored and run when the model is loaded.
        requirements: Packages that the script needs, as pip takes them.
        settings: Keys that the `model_config` of `load_model` may set, with their defaults.
    """

    name: str
    script: str
    requirements: Sequence[str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelColumns:
    """The columns of a model's input and output, which MLflow calls its signature.

    Attributes:
        inputs: Name -> type (`string`, `long`, `double`, ..., or `any`). If there is only one, plain lists of values
            are inputs too.
        optional: Those inputs that may be left out.
        outputs: Name -> type.
    """

    inputs: Mapping[str, str]
    optional: Sequence[str] = ()
    outputs: Mapping[str, str]


def serve_model(build: Callable[[Path, dict[str, Any]], Callable[[Any], Any]]) -> None:
    """Turn the script that calls this into a model for MLflow, which runs the script instead of unpickling an object.

    Args:
        build: Takes the file that `save_model` stored with the model, and the `model_config` given when loading;
            returns the function that answers `predict`.
    """
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc.model import PythonModel

    class Model(PythonModel):
        def load_context(self, context: Any) -> None:
            self._answer = build(Path(context.artifacts[_MODEL_FILE]), context.model_config or {})

        # MLflow warns of a missing or broad type hint, and infers no schema from this one.
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:  # noqa: ARG002
            return self._answer(model_input)

    set_model(Model())


def save_model(folder: Path, *, model_id: str, run_id: str, code: ModelCode, file: Path, columns: ModelColumns) -> None:
    """Write the files of a model into a folder.

    Args:
        folder: Folder to make.
        model_id: MLflow's id of the model.
        run_id: The run that made it.
        code: How the model is made from the file.
        file: File that the model is made from, such as weights.
        columns: Its input and output.
    """
    # Slow to import, and most commands save no model.
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    anything = AnyType()  # type: ignore[no-untyped-call]

    def schema(types: Mapping[str, str]) -> Schema:
        kinds = {name: anything if kind == "any" else kind for name, kind in types.items()}
        return Schema([ColSpec(kind, name, name not in columns.optional) for name, kind in kinds.items()])

    # MLflow takes lists for a column without a name only.
    (first, *others) = columns.inputs.items()
    inputs = schema(columns.inputs) if others else Schema([ColSpec(first[1])])
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scripts:
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        script = Path(scripts, code.name)
        script.write_text(code.script, encoding="utf-8")
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(script),
            artifacts={_MODEL_FILE: str(file)},
            pip_requirements=list(code.requirements),
            model_config=dict(code.settings),
            signature=ModelSignature(inputs=inputs, outputs=schema(columns.outputs)),
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        )
    # Each file is an upload. MLflow makes the other two from `conda.yaml` where they are missing.
    for name in ("requirements.txt", "python_env.yaml"):
        (folder / name).unlink()
