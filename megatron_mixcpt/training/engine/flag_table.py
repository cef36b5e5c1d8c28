"""Every flag of the engine, each in one class: served, of the model, or refused.

What is served and must be the same where a run resumes stands here, with what the model folder decides;
``harmless_flags.py`` has what is served and may differ, ``refused_flags.py`` what is refused. The trainers go by these
tables: an explicit flag that none of them names is refused, so that what an upgrade of the engine brings is never taken
unseen. ``python -m megatron_mixcpt.training.engine.flag_table`` prints every flag.
"""

import functools
from typing import Any, Literal, NamedTuple

from megatron.training.arguments import add_megatron_arguments

from megatron_mixcpt.flags import Parser
from megatron_mixcpt.training.engine.harmless_flags import HARMLESS_ENGINE_ARGUMENTS
from megatron_mixcpt.training.engine.refused_flags import REFUSED

_BY_SUBJECT = {
    "the batches and their order": """
        global_batch_size dataloader_type seed split seq_length iterations_to_skip
    """,
    "documents within sequences": """
        reset_position_ids dataloader_inter_document_masking eod_mask_loss
    """,
    "the optimizer": """
        optimizer apply_wd_to_qk_layernorm clip_grad adam_beta1 adam_beta2 adam_eps sgd_momentum muon_momentum
        muon_split_qkv muon_nesterov muon_scale_mode muon_fp32_matmul_prec muon_coefficient_type muon_num_ns_steps
        muon_tp_mode muon_extra_scale_factor muon_scalar_optimizer lion_beta1 lion_beta2 no_weight_decay_cond_type
        decoupled_lr decoupled_min_lr use_precision_aware_optimizer main_grads_dtype main_params_dtype exp_avg_dtype
        exp_avg_sq_dtype
    """,
    "the learning rate, beside what the engine compares itself": """
        lr_wsd_decay_style lr_wsd_decay_iters lr_wsd_decay_samples lr_warmup_init
    """,
    "precision": """
        fp16 bf16 fp8 fp8_recipe first_last_layers_bf16 num_layers_at_start_in_bf16 num_layers_at_end_in_bf16
        loss_scale initial_loss_scale min_loss_scale loss_scale_window hysteresis attention_softmax_in_fp32
        apply_query_key_layer_scaling grad_reduce_in_bf16 accumulate_allreduce_grads_in_fp32
        reuse_grad_buf_for_mxfp8_param_ag disable_bf16_reduced_precision_matmul
        ddp_reduce_scatter_with_fp32_accumulation ddp_param_name_patterns_for_fp32_local_accumulation
        calculate_per_token_loss
    """,
    "dropout and random numbers": """
        hidden_dropout attention_dropout data_parallel_random_init
    """,
    "how experts are trained": """
        moe_router_load_balancing_type moe_aux_loss_coeff moe_z_loss_coeff moe_input_jitter_eps moe_router_dtype
        moe_router_padding_for_quantization moe_router_padding_for_fp8
    """,
    "what the engine tries out": """
        enable_experimental mlp_chunks_for_training error_injection_rate error_injection_type
    """,
    "named otherwise here, or decided by each trainer (decided_flags.py)": """
        data_path reset_attention_mask tokenizer_type null_tokenizer_eod_id chat_template sft
    """,
}
SERVED = {name: subject for subject, names in _BY_SUBJECT.items() for name in names.split()}
"""Names among the engine's arguments, each with its subject."""

OF_THE_MODEL = frozenset(
    """
        num_layers hidden_size num_attention_heads num_query_groups group_query_attention ffn_hidden_size
        kv_channels layernorm_epsilon layernorm_zero_centered_gamma add_bias_linear add_qkv_bias normalization
        qk_layernorm swiglu position_embedding_type add_position_embedding use_rotary_position_embeddings
        rotary_base rotary_percent use_rope_scaling rope_scaling_factor no_rope_freq
        untie_embeddings_and_output_weights vocab_size num_experts moe_layer_freq moe_ffn_hidden_size
        moe_router_topk moe_router_pre_softmax moe_router_score_function moe_router_topk_scaling_factor
        moe_router_enable_expert_bias moe_router_num_groups moe_router_group_topk moe_shared_expert_intermediate_size
        attention_output_gate experimental_attention_variant linear_attention_freq linear_conv_kernel_dim
        linear_key_head_dim linear_value_head_dim linear_num_key_heads linear_num_value_heads
        softmax_type rotary_interleaved moe_shared_expert_gate
        multi_latent_attention q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim
        rotary_scaling_factor mscale_all_dim
    """.split()
)
"""Names among the engine's arguments that follow from config.json; a value that contradicts it is refused."""

FlagClass = Literal["served", "served, may differ on resume", "the model's", "refused"]


class EngineArgument(NamedTuple):
    """An argument of the engine's parser."""

    flag: str
    """The first of its flags that does not belong to another argument as well."""
    default: Any


@functools.cache
def engine_arguments() -> dict[str, EngineArgument]:
    """The engine's arguments by name, in its order."""
    found: dict[str, EngineArgument] = {}
    for action in add_megatron_arguments(Parser())._actions:  # argparse has no public list of them
        if action.option_strings and action.dest != "help":
            found.setdefault(action.dest, EngineArgument(action.option_strings[0], action.default))
    return found


def flag_of(name: str) -> str:
    """The flag of an engine argument, such as ``--no-mmap-bin-files`` for ``mmap_bin_files``."""
    return engine_arguments()[name].flag


def classes_of(name: str) -> dict[FlagClass, str]:
    """The classes that name an engine argument, each with its reason or subject; exactly one for every argument."""
    tables: dict[FlagClass, dict[str, str]] = {
        "refused": REFUSED,
        "the model's": dict.fromkeys(OF_THE_MODEL, "config.json decides it"),
        "served": SERVED,
        "served, may differ on resume": HARMLESS_ENGINE_ARGUMENTS,
    }
    return {kind: table[name] for kind, table in tables.items() if name in table}


def main() -> None:
    """Print the table."""
    for name, argument in engine_arguments().items():
        for kind, reason in classes_of(name).items():
            print(f"{argument.flag:<60}{kind:<31}{reason}")


if __name__ == "__main__":
    main()
