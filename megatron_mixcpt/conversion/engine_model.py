"""An engine ``GPTModel`` from a model folder's settings alone, for checking conversions without the training program.

Training builds its models through the engine's own arguments and builders; here the same settings go straight into
``TransformerConfig`` and ``GPTModel``. Parallel state must be initialised, and on a machine without a GPU the CPU
emulation installed, before this module is imported.
"""

from dataclasses import fields
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_mixcpt.conversion.model_folder import ModelPlan
from megatron_mixcpt.models.layer_specs import gpt_layer_spec


def transformer_config(plan: ModelPlan, dtype: torch.dtype = torch.float32, **overrides: Any) -> TransformerConfig:
    """The engine's configuration for the folder's model, with the sizes of the initialised parallel groups."""
    names = {field.name for field in fields(TransformerConfig)}
    arguments = {name: value for name, value in plan.engine_arguments.items() if name in names}
    return TransformerConfig(
        **arguments,
        gated_linear_unit=plan.engine_arguments["swiglu"],
        activation_func=torch.nn.functional.silu,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        perform_initialization=False,
        **overrides,
    )


def build_engine_model(plan: ModelPlan, config: TransformerConfig, *, parallel_output: bool = False) -> GPTModel:
    """This pipeline stage's ``GPTModel``, its parameters not initialised; the vocabulary is padded to a multiple of TP.

    Args:
        plan: a folder as read by ``read_model_folder`` or ``read_config``.
        config: from :func:`transformer_config`.
        parallel_output: leave logits split over tensor-parallel ranks ([b, s, v/tp]) instead of gathering them.
    """
    arguments, size = plan.engine_arguments, config.tensor_model_parallel_size
    spec = gpt_layer_spec(config)
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=-(-plan.vocab_size // size) * size,
        max_sequence_length=arguments["max_position_embeddings"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=parallel_output,
        share_embeddings_and_output_weights=plan.tied,
        position_embedding_type="rope",
        rotary_percent=arguments["rotary_percent"],
        rotary_base=arguments["rotary_base"],
        rope_scaling=arguments["use_rope_scaling"],
        rope_scaling_factor=arguments.get("rope_scaling_factor", 8.0),
    )
