"""The engine's ``GPTModel`` for a model folder: built from its settings, filled with this rank's weights, and run.

Training builds its models through the engine's arguments and builders, and only fills them here. To check conversions
and to evaluate without the training program, the same settings go directly into ``TransformerConfig`` and ``GPTModel``.
The functions need initialised parallel groups (``parallel_groups.py``); on a machine without a GPU, the CPU emulation
must be installed before this module is imported.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from megatron_mixcpt.conversion.hf_model_folder import HFModel, ModelPlan
from megatron_mixcpt.conversion.load import ExpertParallel, load_hf_weights
from megatron_mixcpt.conversion.megatron_for_engine import open_for_engine, supply_missing_extra_states
from megatron_mixcpt.losses.logit_scaling import LogitScaling
from megatron_mixcpt.models.configure import complete_model, configure_model
from megatron_mixcpt.models.layer_specs import gpt_layer_spec, lacking_in_transformer_engine
from megatron_mixcpt.models.options import options_of


def transformer_config(plan: ModelPlan, dtype: torch.dtype = torch.float32, **overrides: Any) -> TransformerConfig:
    """The engine's configuration for the folder's model, with the sizes of the initialised parallel groups.

    Layers are Transformer Engine's where it is installed, unless they lack a part of the model.
    """
    config_class = MLATransformerConfig if plan.engine_arguments["multi_latent_attention"] else TransformerConfig
    names = {field.name for field in fields(config_class)}
    arguments = {name: value for name, value in plan.engine_arguments.items() if name in names}
    config = config_class(
        **arguments,
        num_moe_experts=plan.engine_arguments["num_experts"],
        expert_model_parallel_size=parallel_state.get_expert_model_parallel_world_size(),
        expert_tensor_parallel_size=parallel_state.get_expert_tensor_parallel_world_size(),
        moe_token_dispatcher_type="alltoall",  # batches of data-parallel ranks differ in size
        gated_linear_unit=plan.engine_arguments["swiglu"],
        activation_func=torch.nn.functional.silu,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        context_parallel_size=parallel_state.get_context_parallel_world_size(),
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        perform_initialization=False,
        **overrides,
    )
    configure_model(config, plan.options)
    if lacking_in_transformer_engine(config):
        config.transformer_impl = "local"
    return config


def build_engine_model(plan: ModelPlan, config: TransformerConfig, *, parallel_output: bool = False) -> GPTModel:
    """This pipeline stage's ``GPTModel``, not initialised; the vocabulary is padded to a multiple of TP.

    Args:
        plan: a folder as read by ``read_model_folder`` or ``read_config``.
        config: from :func:`transformer_config`.
        parallel_output: leave logits split over tensor-parallel ranks ([b, s, v/tp]) instead of gathering them.
    """
    arguments, size = plan.engine_arguments, config.tensor_model_parallel_size
    model = GPTModel(
        config=config,
        transformer_layer_spec=gpt_layer_spec(config),
        vocab_size=-(-plan.vocab_size // size) * size,
        max_sequence_length=arguments["max_position_embeddings"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=parallel_output,
        share_embeddings_and_output_weights=plan.tied,
        position_embedding_type="rope",
    )
    complete_model(model)
    return model


def load_on_this_rank(model: GPTModel, hf_model: HFModel) -> None:
    """Fill a pipeline stage, in place, with this rank's slices of a model folder."""
    load_hf_weights(
        model,
        hf_model,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        experts=ExpertParallel(
            parallel_state.get_expert_model_parallel_rank(),
            parallel_state.get_expert_model_parallel_world_size(),
            parallel_state.get_expert_tensor_parallel_rank(),
            parallel_state.get_expert_tensor_parallel_world_size(),
        ),
    )


def load_megatron_weights(model: GPTModel, load_dir: str | Path, iteration: int | None = None) -> None:
    """Fill this stage's model, in place, from a checkpoint of any layout, with the engine's loader.

    Raises CheckpointError where there is none, or where loading it would run code that it names.
    """
    folder = open_for_engine(load_dir, iteration).folder
    wanted = {"model": model.sharded_state_dict()}
    supply_missing_extra_states(wanted, folder)
    state = dist_checkpointing.load(wanted, str(folder))
    model.load_state_dict(state["model"])


def logit_scaling(config: TransformerConfig) -> LogitScaling:
    """What the model makes of its output layer's products."""
    options = options_of(config)
    return LogitScaling(options.logit_multiplier, options.final_softcap)


@torch.no_grad()
def forward_through_stages(
    model: GPTModel,
    tokens: torch.Tensor,
    positions: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    packed_seq_params: PackedSeqParams | None = None,
    sequence_length: int | None = None,
    scales_logits: bool = True,
) -> torch.Tensor | None:
    """Logits of ``tokens`` [b, s] through the pipeline's stages in turn; None on all but the last.

    Hidden states [s, b, h] are sent from stage to stage. Every rank of the tensor- and pipeline-parallel groups must
    call, with the same shapes; a stage can take the next call as soon as the next stage has received its output.

    Args:
        positions: int64 [b, s]; None counts from 0 in every row.
        attention_mask: [b or 1, 1, s, s], as the layers' attention takes it; None is causal.
        packed_seq_params: document boundaries, for Transformer Engine's attention.
        sequence_length: tokens of the longest sequence without padding, for rotary embeddings that depend on it; None:
            there is no padding.
        scales_logits: False leaves logits without the model's multiplier and soft cap, for who computes them with
            :func:`logit_scaling` in higher precision.

    Returns:
        [b, s, v], or this rank's columns [b, s, v/tp] where the model was built with ``parallel_output``.
    """
    device = next(model.parameters()).device
    batch, length = tokens.shape
    model.rotary_pos_emb.sequence_length = sequence_length
    if not model.pre_process:
        received = torch.empty(length, batch, model.config.hidden_size, dtype=model.config.params_dtype, device=device)
        dist.recv(received, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(received)
    if positions is None:
        positions = torch.arange(length, device=device).expand(batch, length)
    output = model(tokens.to(device), positions, attention_mask, packed_seq_params=packed_seq_params)
    if model.post_process:
        return logit_scaling(model.config).apply_(output) if scales_logits else output
    dist.send(output.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
    return None
