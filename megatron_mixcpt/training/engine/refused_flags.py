"""Flags of the engine that would not do here what they say, and features of it that nothing has tested with a teacher
beside the student. Each is refused with its reason; a value that is the engine's default is not.
"""

from collections.abc import Mapping
from typing import Any

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import flag_name

_BY_REASON = {
    "CUDA graphs replay the addresses of tensors, and no graph is tested with a teacher beside the student": """
        cuda_graph_impl cuda_graph_modules cuda_graph_scope_deprecated enable_cuda_graph external_cuda_graph
        optimizer_cuda_graph delay_offload_until_cuda_graph
    """,
    "FSDP takes parameters apart that the losses read, and is not tested; --use-distributed-optimizer shards what Adam "
    "keeps": """
        use_megatron_fsdp use_torch_fsdp2 torch_fsdp2_reshard_after_forward data_parallel_sharding_strategy
        outer_dp_sharding_strategy enable_full_sharding_in_hsdp fsdp_manual_registration fsdp_double_buffer
        fsdp_db_use_persist_buf_on_alloc_fail megatron_fsdp_main_params_dtype megatron_fsdp_main_grads_dtype
        megatron_fsdp_grad_comm_dtype megatron_fsdp_enable_fine_grained_param_gather
        megatron_fsdp_max_pool_double_buffer
    """,
    "the weights are filled in before the engine would give them memory": "init_model_with_meta_device",
    "moving activations to the host is not tested, and would move the teacher's too; --recompute-granularity saves "
    "memory": """
        cpu_offloading_num_layers cpu_offloading_retain_pinned_cpu_buffers fine_grained_activation_offloading
        offload_modules moe_paged_stash
    """,
    "an optimizer on the host is not tested, and tools/plan.py does not count it": """
        optimizer_cpu_offload optimizer_offload_fraction overlap_cpu_optimizer_d2h_h2d
        use_torch_optimizer_for_cpu_offload
    """,
    "the engine would run the layers in an order of its own, past the teacher": """
        overlap_moe_expert_parallel_comm delay_wgrad_compute overlap_dispatch_backward_with_experts_wgrad
        ep_overlap_early_attn_memory_release
    """,
    "the teacher's output layer would keep the inputs of a gradient that is never computed": """
        defer_embedding_wgrad_compute
    """,
    "the losses are this package's, and the engine's cross-entropy does not run": """
        cross_entropy_loss_fusion cross_entropy_fusion_impl fp16_lm_cross_entropy
    """,
    "weights are loaded into the layers, and their float32 copies would start from 8 bits": "fp8_param_gather",
    "the losses take the output layer's weight, which is not to be rounded to 8 bits": "fp8_output_proj",
    "it belongs to delayed scaling, which is not used here": """
        fp8_margin fp8_interval fp8_amax_history_len fp8_amax_compute_algo fp8_wgrad
    """,
    "no training in 4 bits, nor one with a precision for each module, has been tested": """
        fp4 fp4_recipe fp4_param_gather fp4_quantizer_factory fp8_quantizer_factory te_precision_config_file
    """,
    "these kernels of Transformer Engine have not been tested with a teacher beside the student": """
        tp_comm_overlap symmetric_ar_type use_te_activation_func use_transformer_engine_op_fuser
        use_grouped_gemm_for_dense_mlp fused_residual_rmsnorm use_kitchen_attention
    """,
    "only CUDA graphs need it, and they are not used here": "te_rng_tracker",
    "sequences are split evenly over context parallel ranks": "hybrid_context_parallel",
    "the losses have no term for multi-token prediction": "mtp_num_layers",
    "the losses read logits that are not scaled": "use_mup",
    "the data are what --mixture, --sft or --dpo names": """
        mock_data data_args_path per_split_data_args_path test_data_path fim_data
    """,
    "the tokenizer is the model's": "vocab_file merge_file",
    "the weights are filled in by tensor parallel slices": """
        tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards
    """,
    "the architecture is that of the model folder": """
        spec hybrid_layer_pattern hybrid_override_pattern is_hybrid_model heterogeneous_layers_config_path
        heterogeneous_layers_config_encoded_json experimental_attention_variant linear_attention_freq
        multi_latent_attention moe_use_upcycling
    """,
    "the engine would take its arguments from the file and ignore the command line": "yaml_cfg",
    "nothing would be trained": "freeze_all_layers",
    "the engine's own programs do it; torchrun starts a failed run again": "inprocess_restart",
    "the teacher runs beside the student; see --teacher": "logits_save_dir logits_load_dir",
    "what is learned here is not reinforcement learning": "perform_rl_step",
}
REFUSED = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
"""Names among the engine's arguments, each with its reason."""

_FLAGS = {
    "fp4": "--fp4-format",
    "fp8_wgrad": "--no-fp8-wgrad",
    "cuda_graph_scope_deprecated": "--cuda-graph-scope",
    "torch_fsdp2_reshard_after_forward": "--torch-fsdp2-no-reshard-after-forward",
}


def flag_of(name: str) -> str:
    """The flag of an engine argument in ``REFUSED``."""
    return _FLAGS.get(name) or flag_name(name)


def refuse_unsupported(explicit: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ConfigError for a flag in ``REFUSED`` whose value is not the engine's default.

    Args:
        explicit: arguments that the command line gives, by destination.
        defaults: the engine's.
    """
    for name in sorted(REFUSED.keys() & explicit.keys()):
        if explicit[name] != defaults[name]:
            raise ConfigError(f"{flag_of(name)} is not supported ({REFUSED[name]}); remove it")
