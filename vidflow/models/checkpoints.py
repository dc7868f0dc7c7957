"""Load released checkpoints into our modules, and export them: the frozen-encoder paper's files, RVM's JAX arrays."""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from vidflow.errors import VidflowError
from vidflow.models.cores.gated_transformer import GatedTransformerCore
from vidflow.models.cores.temporal_core import TemporalCore
from vidflow.models.flax_arrays import from_flax
from vidflow.models.tasks.box_tracking import BoxTrackingTask
from vidflow.models.tasks.camera_pose import CameraPoseTask
from vidflow.models.tasks.depth import DepthTask
from vidflow.models.tasks.point_tracking import PointTrackingTask
from vidflow.models.tasks.task import Task
from vidflow.models.tensor_checks import tensor_faults

# (ours, released). Cores and the classification readout already have the released names.
_TASK_NAMES = (
    ("core.", "sequential_core."),
    ("depth_mixing.layers.", "encoder.interm_mlps."),
    ("projection.", "proj_to_readout."),
    ("log_variances", "loss_fn.log_variances"),
)
_BOX_NAMES = (
    ("query_encoder.fourier.", "bbox_query_encoder.fourier_enc."),
    ("query_encoder.mlp.", "bbox_query_encoder.bbox_encoder."),
    ("query_encoder.to_query.", "bbox_query_encoder.to_query."),
    ("decoder.", "readout."),
    ("head.", "bbox_head."),
)
_POINT_NAMES = (
    ("query_encoder.fourier.", "fourier_enc."),
    ("query_encoder.mlp.", "point_mlp."),
    ("query_encoder.to_query.", "to_query."),
    ("decoder.", "readout."),
    ("head.", "prediction_head."),
)
_FREQUENCIES = "fourier_enc.freqs"
_ADAPTERS = "encoder.interm_mlps."
# RVM's word to ours, for names that differ.
_RVM_WORDS = {
    "xa_blocks_": "layers",
    "ca_attention": "ca_attn",
    "ca_attention_norm": "ca_norm",
    "attention": "sa_attn",
    "attention_norm": "sa_norm",
    "dense_in": "fc1",
    "dense_out": "fc2",
    "out": "out_proj",
}


def load_released(
    module: TemporalCore | Task, tensors: Mapping[str, Tensor], *, rvm: Mapping[str, np.ndarray] | None = None
) -> None:
    """Load weights with the released names into a core or a task.

    A `model.` prefix, as Lightning writes it, is removed. Our modules do not contain the frozen encoder: of
    `encoder.*` only the adapters of tapped depths are read. Three kinds of tensors may be absent, and ours then stay
    as they are: `loss_fn.*`, the counters of batch norm, and the frequencies of Fourier encodings. Frequencies are
    computed; a checkpoint's must equal them. All other buffers are required, such as the running statistics of batch
    norm. Nothing is loaded unless everything fits.

    Args:
        module: A core, for tensors of a core alone, or a task.
        tensors: The tensors of the checkpoint.
        rvm: RVM's arrays, as for `load_rvm`. Give them for a checkpoint that was trained on RVM's frozen core and does
            not contain it. They load the whole core except its output norm, which RVM does not have.

    Raises:
        VidflowError: The message lists every tensor that is missing, unexpected, of another shape or kind of number,
            without values (meta, sparse, quantized), not finite, or in another's memory, and frequencies that differ.
            Or `rvm` does not fit the core.
    """
    if others := [key for key, tensor in tensors.items() if not isinstance(tensor, Tensor)]:
        raise VidflowError(f"{', '.join(others)}: no tensors; of a Lightning file give checkpoint['state_dict']")
    names = _released_names(module)
    found = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    if len(found) < len(tensors):
        twice = [key for key in tensors if f"model.{key}" in tensors]
        raise VidflowError(f"{', '.join(twice)}: present with and without the prefix `model.`; remove one of them")
    found |= _core_of_rvm(module, found.keys(), rvm)
    wanted = {name for name in names.values() if not _is_optional(name) or name in found}
    extra = {name for name in found.keys() - wanted if not _is_foreign(name)}
    _load(module, {name: key for key, name in names.items() if name in wanted}, found, extra)


def export_released(module: TemporalCore | Task) -> dict[str, Tensor]:
    """Return the weights under the released names: the inverse of `load_released`, without the `model.` prefix.

    A tensor that the published models do not have keeps our name.
    """
    state = module.state_dict()
    return {name: state[key].detach().clone() for key, name in _released_names(module).items()}


def load_rvm(core: GatedTransformerCore, arrays: Mapping[str, np.ndarray]) -> None:
    """Load the recurrent core of RVM's released `.npz` into a gated transformer core of either variant.

    Arrays outside `rnn_core/` are ignored. To load RVM's image encoder, name the file in `encoder.weights`, with the
    timm model of the same size. The variant `rvm` computes what RVM does. The frozen-encoder paper loads RVM's weights
    into the variant `released`: the bias of the state norm becomes zero; the output norm, which RVM does not have,
    stays as it is.

    Source: google-deepmind/representations4d, `colabs/rvm_inference_demo.ipynb`, names of the modules.

    Args:
        core: Built with `rvm_num_heads(arrays)` heads.
        arrays: The result of `numpy.load(path, allow_pickle=False)`.

    Raises:
        VidflowError: The message lists every array that is missing, unexpected, of another shape or not finite. Or the
            number of heads differs, which our shapes do not show.
    """
    found = _rvm_tensors(core, arrays)
    names = {key: key for key in core.state_dict() if not key.startswith("output_norm.")}
    _load(core, names, found, found.keys() - names.keys())


def rvm_num_heads(arrays: Mapping[str, np.ndarray]) -> int:
    """Read the number of attention heads from RVM's arrays.

    Raises:
        VidflowError: There is no such array.
    """
    key = "rnn_core/transformer/xa_blocks_0/attention/query/kernel"
    if key not in arrays or arrays[key].ndim != 3:
        raise VidflowError(
            f"no array {key!r} of 3 axes among {len(arrays)}: this is not a checkpoint of RVM's recurrent core"
        )
    return int(arrays[key].shape[1])


def _core_of_rvm(
    module: TemporalCore | Task, found: Collection[str], rvm: Mapping[str, np.ndarray] | None
) -> dict[str, Tensor]:
    """Return the core's tensors from RVM's arrays under the released names, if arrays are given."""
    core, prefix = (module.core, "sequential_core.") if isinstance(module, Task) else (module, "")
    if rvm is None:
        if isinstance(core, GatedTransformerCore) and not any(
            name.startswith(f"{prefix}transformer.") for name in found
        ):
            raise VidflowError(
                "the checkpoint does not hold the core's transformer; if it was trained on RVM's frozen core, give "
                "RVM's arrays as well: load_released(module, tensors, rvm=arrays)"
            )
        return {}
    if not isinstance(core, GatedTransformerCore):
        raise VidflowError(f"rvm is given, but the core is a {type(core).__name__}; wanted a gated transformer")
    tensors = {f"{prefix}{key}": tensor for key, tensor in _rvm_tensors(core, rvm).items()}
    if both := sorted(tensors.keys() & found):
        raise VidflowError(f"the checkpoint holds the core itself ({', '.join(both)}); leave out rvm")
    return tensors


def _rvm_tensors(core: GatedTransformerCore, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the tensors of RVM's recurrent core under our names."""
    if (num_heads := rvm_num_heads(arrays)) != core.num_heads:
        raise VidflowError(f"the core has {core.num_heads} heads, RVM's arrays {num_heads}; build it with as many")
    prefix = "rnn_core/"
    ours = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    found = from_flax(ours, words=_RVM_WORDS, fused="{}.in_proj_{}")
    if core.state_layer_norm.bias is not None:
        # RVM's norm of the state only scales.
        found.setdefault("state_layer_norm.bias", torch.zeros(core.embed_dim))
    return found


def _released_names(module: TemporalCore | Task) -> dict[str, str]:
    """Map our name of every parameter and buffer to its released name."""
    renames: tuple[tuple[str, str], ...] = _TASK_NAMES if isinstance(module, Task) else ()
    match module:
        case BoxTrackingTask():
            renames += _BOX_NAMES
        case PointTrackingTask():
            renames += _POINT_NAMES
        case DepthTask():
            renames += (("readout.", "readout.readout."),)
        case CameraPoseTask():
            renames += (("head.", "pose_head."),)
    return {key: _rename(key, renames) for key in module.state_dict()}


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for ours, released in renames:
        if key.startswith(ours):
            return released + key.removeprefix(ours)
    return key


def _is_optional(name: str) -> bool:
    """Whether a module predicts the same without this tensor of the checkpoint."""
    return name.startswith("loss_fn.") or name.endswith((_FREQUENCIES, ".num_batches_tracked"))


def _is_foreign(name: str) -> bool:
    is_frozen_encoder = name.startswith("encoder.") and not name.startswith(_ADAPTERS)
    return is_frozen_encoder or name.startswith("loss_fn.")


def _load(module: nn.Module, names: Mapping[str, str], found: Mapping[str, Tensor], extra: set[str]) -> None:
    """Copy `found` into `module` by `names` (theirs to ours), or report everything that does not fit."""
    state = module.state_dict()
    problems = [f"missing: {name} {tuple(state[key].shape)}" for name, key in names.items() if name not in found]
    problems += [f"unexpected: {name} {tuple(found[name].shape)}" for name in sorted(extra)]
    wanted = {name: state[key] for name, key in names.items()}
    problems += tensor_faults({name: found[name] for name in names if name in found}, wanted)
    problems = problems or [
        f"{name} is {found[name].tolist()}, but {type(module).__name__} computes {own.tolist()}"
        for name, own in wanted.items()
        if name.endswith(_FREQUENCIES) and not torch.equal(found[name].to(own), own)
    ]
    if problems:
        raise VidflowError(
            f"the checkpoint does not fit {type(module).__name__} ({len(problems)} problems); build it with the "
            "options the checkpoint was trained with:\n  " + "\n  ".join(problems)
        )
    # Copy first: the found tensors may be the module's own under other names.
    copies = {key: found[name].detach().to(state[key].dtype, copy=True) for name, key in names.items()}
    with torch.no_grad():
        for key, copy in copies.items():
            state[key].copy_(copy)
