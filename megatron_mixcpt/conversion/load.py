"""Fill one pipeline stage of an engine model with its slices of a Hugging Face checkpoint.

Each rank reads from the safetensors files only the bytes of its own tensor-parallel shard and its own layers. Every
parameter of the stage must be filled, and every rule of the stage's layers used, exactly once.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from megatron_mixcpt.conversion.architectures.rules import Rule
from megatron_mixcpt.conversion.hf_model_folder import EMBEDDING, OUTPUT_LAYER, HFModel
from megatron_mixcpt.errors import CheckpointError

if TYPE_CHECKING:  # an import here would come before the CPU emulation's install()
    from megatron.core.models.gpt.gpt_model import GPTModel

# Where layers are not Transformer Engine's, norms stand beside the linear layers that they are fused into there.
LOCAL_NAMES = {
    "input_layernorm": ("self_attention.linear_qkv.layer_norm_", "self_attention.in_proj.layer_norm_"),
    "pre_mlp_layernorm": ("mlp.linear_fc1.layer_norm_",),
    "self_attention.q_layernorm": ("self_attention.linear_q_up_proj.layer_norm_",),
    "self_attention.kv_layernorm": ("self_attention.linear_kv_up_proj.layer_norm_",),
}


@dataclass(frozen=True)
class ExpertParallel:
    """This rank's place among the ranks that share a mixture of experts; by default it holds every expert, unsplit."""

    rank: int = 0
    """Rank in the expert-parallel group: which experts."""
    size: int = 1
    tp_rank: int = 0
    """Rank in the expert tensor-parallel group: which part of each."""
    tp_size: int = 1

    def holds(self, name: str, num_experts: int) -> bool:
        """Whether a tensor belongs to this rank: one of its experts, or no expert's."""
        expert = re.search(r"\.experts\.(\d+)\.", name)
        return expert is None or int(expert[1]) // (num_experts // self.size) == self.rank


def checkpoint_name(
    parameter_name: str, layer_numbers: list[int], known: Collection[str], first_expert: int = 0
) -> str:
    """The checkpoint's name of a live parameter.

    Args:
        parameter_name: as :func:`live_tensors` names it; its layer index counts from the stage's first layer.
        layer_numbers: ``layer_number`` (from 1, over the whole model) of the stage's layers in order.
        known: names that the architecture has; decides between a fused and a separate norm.
        first_expert: the first expert of this rank, from 0 over the whole model.
    """
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", parameter_name)
    if not match:
        return parameter_name
    prefix, name = f"decoder.layers.{layer_numbers[int(match[1])] - 1}.", match[2]
    # One module per expert, or grouped layers with a numbered weight per expert.
    expert = re.fullmatch(r"mlp\.experts\.local_experts\.(?P<index>\d+)\.(?P<rest>.+)", name)
    expert = expert or re.fullmatch(r"mlp\.experts\.(?P<rest>linear_fc\d\.(?:weight|bias))(?P<index>\d+)", name)
    if expert:
        name = f"mlp.experts.{first_expert + int(expert['index'])}.{expert['rest']}"
    norm, _, kind = name.rpartition(".")
    names = [prefix + name, *(prefix + fused + kind for fused in LOCAL_NAMES.get(norm, ()))]
    return next((found for found in names if found in known), names[0])


def live_tensors(model_chunk: "GPTModel") -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of a checkpoint and its name: parameters and, of routers, the biases that are no parameters.

    A parameter that holds all experts of the rank comes in parts, with a number each as in other layers.
    """
    saved = model_chunk.state_dict()  # after which routers have their biases in float32, whatever the model's dtype
    yield from ((name, buffer) for name, buffer in model_chunk.named_buffers() if name in saved)
    for name, parameter in model_chunk.named_parameters():
        if re.search(r"\.mlp\.experts\.linear_fc\d\.(weight|bias)$", name):
            yield from ((f"{name}{index}", expert) for index, expert in enumerate(parameter.data))
        else:
            yield name, parameter.data


def load_hf_weights(
    model_chunk: "GPTModel", hf_model: HFModel, *, tp_rank: int, tp_size: int, experts: ExpertParallel | None = None
) -> None:
    """Copy this rank's part of ``hf_model`` into an unwrapped ``GPTModel``, in place, cast to the parameters' dtype.

    Rows that pad the vocabulary for tensor parallelism are set to zero. With tied embeddings, the last stage's copy
    (``output_layer.weight``) is filled too. Call this before the optimizer takes its float32 copies, or let it reload
    them (``reload_model_params``).

    Args:
        model_chunk: one pipeline stage (or virtual stage), as the engine builds it.
        hf_model: the folder to read.
        tp_rank: rank in the tensor-parallel group.
        tp_size: size of the tensor-parallel group.
        experts: this rank's part of the experts; None: all of them, split over the tensor-parallel group.

    Raises:
        CheckpointError: a parameter without a counterpart, a shape that differs, or a tensor left unused.
    """
    rules = hf_model.rules()
    layer_numbers = [layer.layer_number for layer in model_chunk.decoder.layers]
    experts = experts or ExpertParallel(tp_rank=tp_rank, tp_size=tp_size)
    num_experts = hf_model.engine_arguments["num_experts"] or 0
    first_expert = experts.rank * (num_experts // experts.size)
    stage = _rules_of_stage(model_chunk, rules, layer_numbers)
    unused = {name for name in stage if experts.holds(name, num_experts)}
    for parameter_name, target in live_tensors(model_chunk):
        name = checkpoint_name(parameter_name, layer_numbers, rules, first_expert)
        if name == OUTPUT_LAYER and hf_model.tied:
            name = EMBEDDING
        if name not in rules:
            raise CheckpointError(
                f"the engine's parameter {parameter_name} has no counterpart in {hf_model.architecture.name} "
                f"({hf_model.folder}): remove the flag that adds it"
            )
        split = (experts.tp_rank, experts.tp_size) if rules[name].is_expert else (tp_rank, tp_size)
        _fill(target, parameter_name, rules[name], hf_model, *split)
        unused.discard(name)
    if unused:
        raise CheckpointError(
            f"the engine's model has no parameter for {', '.join(sorted(unused))} of {hf_model.folder}: "
            "its architecture flags differ from the checkpoint's"
        )


def _rules_of_stage(model_chunk: "GPTModel", rules: dict[str, Rule], layer_numbers: list[int]) -> set[str]:
    prefixes = tuple(f"decoder.layers.{number - 1}." for number in layer_numbers)
    names = {name for name in rules if name.startswith(prefixes)} if prefixes else set()
    if model_chunk.pre_process:
        names.add(EMBEDDING)
    if model_chunk.post_process:
        names |= {name for name in rules if name.startswith(("decoder.final_layernorm.", OUTPUT_LAYER))}
    return names


def _fill(target: torch.Tensor, name: str, rule: Rule, hf_model: HFModel, tp_rank: int, tp_size: int) -> None:
    blocks = rule.blocks(hf_model.dims, tp_rank, tp_size, num_rows=target.shape[0])
    num_rows, whole = sum(block.num_rows for block in blocks), rule.engine_shape(hf_model.dims)
    may_pad = rule.engine in (EMBEDDING, OUTPUT_LAYER)
    rows_fit = target.shape[0] * tp_size >= whole[0] if may_pad else target.shape[0] == num_rows
    trailing = (whole[1] // tp_size,) if rule.splits_columns else whole[1:]
    if not rows_fit or tuple(target.shape[1:]) != trailing:
        raise CheckpointError(
            f"the engine's {name} has shape {tuple(target.shape)} on tensor-parallel rank {tp_rank} of {tp_size}, "
            f"which {hf_model.folder} cannot fill: its architecture flags differ from the checkpoint's"
        )
    row = 0
    for block in blocks:
        rows = target[row : row + block.num_rows]
        rows.copy_(block.from_hf(hf_model.tensors.read(block.name, *block.hf_slices, block.index)))
        row += block.num_rows
    target[row:].zero_()
