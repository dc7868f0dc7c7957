"""Start a trial's core from that of an earlier trial (`init_from`)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.cores.build import default_heads
from vidflow.models.tasks import Task
from vidflow.models.tensor_checks import tensor_faults
from vidflow.store.initial_weights import front_name
from vidflow.training.recipe import ModuleRecipe
from vidflow.training.snapshot import TrialIdentity, read_tensors

# May be new in a trial, because it changes nothing at the start.
_NEW = ("token_adapter.",)
_NUM_NAMED = 8


class InitialWeights:
    """The part of an earlier trial in front of its readout: what its core is, and what the core saw.

    Attributes:
        path: The trial's `best.safetensors`.
        identity: The trial.
        recipe: How its module was built.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            VidflowError: There is no such file, or it is damaged or no trial's.
        """
        tensors, metadata = read_tensors(path, is_own=False)
        self.path, self.identity = path, TrialIdentity(**metadata["identity"])
        self.recipe = ModuleRecipe(**self.identity.recipe)
        self._tensors = _front_of(tensors)

    def faults(self, task: Task, recipe: ModuleRecipe) -> Iterator[str]:
        """Yield why a trial cannot start from it: settings and parameters that differ.

        Args:
            task: The trial's module; may be without memory.
            recipe: How it was built.
        """
        found, wanted = _settings_of(self.recipe), _settings_of(recipe)
        yield from (f"{name} is {found[name]}, wanted {wanted[name]}" for name in found if found[name] != wanted[name])
        wanted_shapes = _front_of(task.state_dict())
        for name in sorted(wanted_shapes.keys() - self._tensors.keys()):
            if not name.startswith(_NEW):
                yield f"{name} is missing"
        for name in sorted(self._tensors.keys() - wanted_shapes.keys()):
            yield f"{name} is not in this trial"
        for name in sorted(self._tensors.keys() & wanted_shapes.keys()):
            if (shape := self._tensors[name].shape) != (other := wanted_shapes[name].shape):
                yield f"{name} is {tuple(shape)}, wanted {tuple(other)}"

    def load_into(self, task: Task, recipe: ModuleRecipe) -> None:
        """Copy the weights into a trial's module.

        Raises:
            VidflowError: They do not fit.
        """
        if problem := describe_faults(list(self.faults(task, recipe))):
            raise VidflowError(f"init_from: {self.path}: {problem}")
        wanted = task.state_dict()
        if faults := tensor_faults(self._tensors, {name: wanted[name] for name in self._tensors}):
            raise VidflowError(f"init_from: {self.path}: {'; '.join(faults)}")
        task.load_state_dict(self._tensors, strict=False)


def describe_faults(faults: list[str]) -> str:
    """Return one sentence about what differs; empty if nothing does."""
    if not faults:
        return ""
    more = f" and {len(faults) - _NUM_NAMED} more" if len(faults) > _NUM_NAMED else ""
    return (
        f"that trial's weights do not fit: {'; '.join(faults[:_NUM_NAMED])}{more}; give both trials the same core, "
        "num_layers, num_heads, mix_depths and standardize, on features of one encoder and as many depths"
    )


def _settings_of(recipe: ModuleRecipe) -> dict[str, str | int]:
    """Return what decides the function of a core; heads do so without deciding the shape of a parameter."""
    heads = recipe.num_heads or default_heads(recipe.core, recipe.embed_dim)
    return {
        "core": recipe.core,
        "embed_dim": recipe.embed_dim,
        "num_layers": recipe.num_layers,
        "num_heads": heads,
    }


def _front_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {own: each for name, each in tensors.items() if (own := front_name(name)) is not None}


__all__ = ["InitialWeights", "describe_faults"]
