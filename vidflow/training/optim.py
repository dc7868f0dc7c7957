"""How a module is optimised: the settings, the optimizer, its learning rate at every step, and a step's precision."""

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from vidflow.config.schema import Trial
from vidflow.models.encoder.adapted import LinearAdapter

_RATE = "share_of_learning_rate"
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How a module is optimised.

    Attributes:
        epochs: Passes over the training clips.
        batch_size: Clips per step.
        learning_rate: Largest learning rate.
        weight_decay: Decoupled weight decay.
        warmup_fraction: Share of the steps with rising learning rate, 0 to 1.
        grad_clip: Largest gradient norm.
        precision: Precision of predictions; `auto` is bfloat16 autocast on a GPU and float32 on a CPU.
        seed: Seed of the order of clips, of dropout and of views.
        encoder_rate: Learning rate of what is trained in the encoder, as a share.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    grad_clip: float
    precision: Precision
    seed: int
    encoder_rate: float = 1.0

    @classmethod
    def of(cls, trial: Trial) -> "Optimisation":
        """Return the settings of a trial."""
        return cls(
            epochs=trial.epochs,
            batch_size=trial.batch_size,
            learning_rate=trial.learning_rate,
            weight_decay=trial.weight_decay,
            warmup_fraction=trial.warmup_fraction,
            grad_clip=trial.grad_clip,
            precision=trial.precision,
            seed=trial.seed,
            encoder_rate=trial.encoder_rate,
        )


def build_optimizer(module: nn.Module, *, weight_decay: float, encoder_rate: float = 1.0) -> torch.optim.AdamW:
    """Build AdamW over the trained parameters; weight decay applies only to matrices that multiply activations.

    The learning rate is set at every step, see `learning_rate_at`.

    Args:
        module: Module to train.
        weight_decay: Decoupled decay, at least 0.
        encoder_rate: Share of the learning rate for the parameters below `encoder.`.

    Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2.
    """
    decayed = {id(parameter) for parameter in decayed_parameters(module)}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for is_encoder in (False, True):
        for is_decayed in (True, False):
            groups[is_encoder, is_decayed] = [
                parameter
                for name, parameter in module.named_parameters()
                if parameter.requires_grad
                and name.startswith("encoder.") == is_encoder
                and (id(parameter) in decayed) == is_decayed
            ]
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": weight_decay if is_decayed else 0.0,
                _RATE: encoder_rate if is_encoder else 1.0,
            }
            for (is_encoder, is_decayed), parameters in groups.items()
            if parameters
        ],
        lr=0.0,
        fused=True,
    )


def trained_parameters(optimizer: torch.optim.AdamW) -> list[Tensor]:
    """Return the parameters of an optimizer, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def decayed_parameters(module: nn.Module) -> list[Tensor]:
    """Return the trained parameters that weight decay applies to.

    Vectors (biases, norms) are exempt. So are learned queries and embeddings, because no norm follows them and so
    their size matters. So are parameters that a module has tagged with `_no_weight_decay`, such as state matrices.
    Biases of adapters are not exempt, as published. Source: ZeroI2V (Li et al., ECCV 2024), released configurations.
    """
    adapters = {
        id(each) for owner in module.modules() if isinstance(owner, LinearAdapter) for each in owner.parameters()
    }
    embeddings = {id(owner.weight) for owner in module.modules() if isinstance(owner, nn.Embedding)}
    return [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and (
            id(parameter) in adapters
            or (
                parameter.ndim > 1
                and "weight" in name.rpartition(".")[2]
                and id(parameter) not in embeddings
                and not getattr(parameter, "_no_weight_decay", False)
            )
        )
    ]


def learning_rates(optimisation: Optimisation, *, epoch: int, num_clips: int) -> list[float]:
    """Return the learning rate of every step of an epoch; epochs are counted from 1."""
    num_steps = math.ceil(num_clips / optimisation.batch_size)
    return [
        learning_rate_at(
            step,
            num_steps=optimisation.epochs * num_steps,
            peak=optimisation.learning_rate,
            warmup_fraction=optimisation.warmup_fraction,
        )
        for step in range((epoch - 1) * num_steps, epoch * num_steps)
    ]


def learning_rate_at(step: int, *, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: a linear rise to `peak`, then half a cosine towards zero.

    Args:
        step: Number of steps done before this one, from 0.
        num_steps: Steps of the whole training.
        peak: Largest learning rate.
        warmup_fraction: Share of the steps in the rise, 0 to 1.

    Source: Loshchilov and Hutter 2017, SGDR, equation 5, with one period.
    """
    num_warmup = round(warmup_fraction * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def step_optimizer(optimizer: torch.optim.AdamW, *, learning_rate: float, grad_clip: float) -> None:
    """Clip the gradient's norm over all parameters, take a step and clear the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[_RATE]
    torch.nn.utils.clip_grad_norm_(trained_parameters(optimizer), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which predictions are made."""
    match precision:
        case "auto":
            enabled = device.type == "cuda"
        case "float32":
            enabled = False
        case "bfloat16":
            enabled = True
        case _:
            assert_never(precision)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def moments(optimizer: torch.optim.AdamW, module: nn.Module) -> dict[str, Tensor]:
    """Return AdamW's state as `PARAMETER/exp_avg`, `PARAMETER/exp_avg_sq` and `PARAMETER/step`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{slot}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def load_moments(optimizer: torch.optim.AdamW, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the state that `moments` returned, onto each parameter's device."""
    slots: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter_name, _, slot = name.rpartition("/")
        slots.setdefault(parameter_name, {})[slot] = value
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    parameters = trained_parameters(optimizer)
    state = {index: slots[names[p]] for index, p in enumerate(parameters) if names[p] in slots}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
