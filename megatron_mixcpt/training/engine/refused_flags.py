"""Flags of the engine that would not do here what they say, and features of it that nothing has tested with a teacher
beside the student. Each is refused with its reason; a value that is the engine's default is not.
"""

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
        use_grouped_gemm_for_dense_mlp fused_residual_rmsnorm use_kitchen_attention kitchen_attention_backend
        qk_clip qk_clip_alpha qk_clip_threshold fp32_residual_connection
    """,
    "a token that an expert drops takes another way than in the exported model and in the teacher, and which ones "
    "these are depends on the layout": """
        moe_expert_capacity_factor moe_expert_rank_capacity_factor moe_pad_expert_input_to_capacity
        moe_token_drop_policy
    """,
    "experts would not be chosen by the router's scores": """
        moe_router_force_load_balancing moe_router_force_biased moe_enable_routing_replay
    """,
    "weights are loaded into each expert's own tensor": "moe_single_grouped_weight moe_single_grouped_bias",
    "a bias in the choice of experts stays as the teacher has it": """
        moe_router_bias_update_rate moe_router_quantile_balancing_ema
    """,
    "only CUDA graphs need it, and they are not used here": "te_rng_tracker",
    "the engine does not support it with distributed checkpoints, which are written here": """
        overlap_param_gather_with_optimizer_step
    """,
    "sequences are split evenly over context parallel ranks": "hybrid_context_parallel max_seqlen_per_dp_cp_rank",
    "the losses have no term for multi-token prediction": """
        mtp_num_layers mtp_standalone mtp_loss_scaling_factor mtp_use_repeated_layer mtp_detach_heads
        mtp_hybrid_override_pattern
    """,
    "the losses read logits that are not scaled": """
        use_mup mup_width_mult mup_base_hidden_size mup_embedding_mult mup_output_mult mup_base_head_dim
        mup_attn_scale_power
    """,
    "the data are what --mixture, --sft or --dpo names": """
        mock_data data_args_path per_split_data_args_path test_data_path fim_data fim_rate fim_spm_rate
        fim_split_sample fim_fragment_rate fim_no_prefix fim_prefix_token fim_middle_token fim_suffix_token
        fim_pad_token fim_eod_token train_data_path per_dataset_sequences_path sft_tokenizer_prompt_format
        phase_transition_iterations object_storage_cache_path mid_level_dataset_surplus allow_ambiguous_pad_tokens
        dataloader_fast_cache_load dataloader_defer_npy_index_mmap create_attention_mask_in_dataloader
    """,
    "the tokenizer is the model's": """
        vocab_file merge_file vocab_extra_ids metadata_path special_tokens tiktoken_pattern
        tiktoken_num_special_tokens tokenizer_sentencepiece_legacy tokenizer_sentencepiece_ignore_extra_whitespaces
        tokenizer_hf_no_use_fast tokenizer_hf_no_include_special_tokens trust_remote_code null_tokenizer_pad_id
    """,
    "the weights are filled in by tensor parallel slices": """
        tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards
    """,
    "the architecture is that of the model folder": """
        spec hybrid_layer_pattern hybrid_override_pattern is_hybrid_model heterogeneous_layers_config_path
        heterogeneous_layers_config_encoded_json moe_use_upcycling
        glu_linear_offset activation_func_clamp_value qk_l2_norm
        dsa_indexer_n_heads dsa_indexer_head_dim dsa_indexer_topk dsa_indexer_topk_freq dsa_indexer_skip_topk_offset
        dsa_indexer_loss_coeff dsa_indexer_use_sparse_loss dsa_kernel_backend dsa_indexer_rope_interleaved
        dsa_indexer_rotate_activation dsa_indexer_scoring_relu dsa_indexer_k_norm_epsilon dsa_indexer_k_norm_fp32
        mamba_state_dim mamba_head_dim mamba_num_groups mamba_num_heads mamba_training_ssm_states_dtype
        mrope_section window_size window_attn_skip_freq relative_attention_num_buckets
        relative_attention_max_distance yarn_original_max_position_embeddings yarn_beta_fast yarn_beta_slow
        yarn_correction_range_round_to_int rotary_seq_len_interpolation_factor openai_gelu squared_relu quick_geglu
        apply_residual_connection_post_layernorm moe_shared_expert_glu_interleave_size
        moe_latent_size moe_mlp_glu_interleave_size moe_apply_probs_on_input rope_type
        moe_upcycling_granularity mscale cache_mla_latents
    """,
    "the engine would take its arguments from the file and ignore the command line": "yaml_cfg",
    "nothing would be trained": "freeze_all_layers",
    "the engine's own programs do it; torchrun starts a failed run again": "inprocess_restart",
    "the teacher runs beside the student; see --teacher": """
        logits_save_dir logits_load_dir logits_save_top_k logits_save_top_p logits_save_top_p_min_k
        logits_save_dtype logits_load_decode_threads logits_load_prefetch_factor logits_load_msc_prefetch_depth
        logits_load_kd_loss_alpha logits_load_ignore_errors
    """,
    "what is learned here is not reinforcement learning": """
        perform_rl_step rl_prompts_per_eval grpo_prompts_per_step grpo_group_size rl_generation_lag
        rl_submission_granularity rl_consumption_granularity grpo_iterations grpo_clamp_eps_lower
        grpo_clamp_eps_upper grpo_kl_beta grpo_entropy_term_weight grpo_filter_groups_with_same_reward
        langrl_env_config rl_default_temperature rl_default_top_p rl_default_top_k
        rl_offload_optimizer_during_inference rl_kv_cache_management_mode rl_persist_cuda_graphs rl_partial_rollouts
        rl_inference_logprobs_is_correction rl_importance_sampling_truncation_coef rl_use_sequence_packing
        rl_sequence_packing_max_sequences_per_bin rl_sequence_packing_algo rl_training_cuda_graphs
        rl_inference_tensor_model_parallel_size rl_inference_pipeline_model_parallel_size
        rl_inference_expert_model_parallel_size rl_inference_expert_tensor_model_parallel_size
        rl_inference_model_unified_memory_level rl_offload_inference_model_weights_when_idle refit_method
        rl_verify_model_weights_swap rl_skip_bos_token rl_profile rl_inference_parsers rl_profile_dir
    """,
    "it belongs to the engine's models of images and of retrieval": """
        ict_head_size biencoder_projection_dim biencoder_shared_query_context_model ict_load bert_load
        titles_data_path query_in_block_prob use_one_sent_docs evidence_data_path retriever_report_topk_accuracies
        retriever_score_scaling block_data_path embedding_path indexer_batch_size indexer_log_interval num_classes
        img_h img_w num_channels patch_dim classes_fraction data_per_class_fraction data_sharding head_lr_mult
        vision_pretraining vision_pretraining_type vision_backbone_type swin_backbone_type mask_type mask_factor
        iter_per_epoch dino_local_img_size dino_local_crops_number dino_head_hidden_size dino_bottleneck_size
        dino_freeze_last_layer dino_norm_last_layer dino_warmup_teacher_temp dino_teacher_temp
        dino_warmup_teacher_temp_epochs bert_binary_head mask_prob short_seq_prob sample_rate
    """,
    "it belongs to the engine's inference, which is not used here": """
        inference_batch_times_seqlen_threshold max_tokens_to_oom output_bert_embeddings bert_embedder_type
        use_legacy_static_engine inference_max_requests inference_max_seq_length inference_dynamic_batching
        inference_dynamic_batching_buffer_size_gb inference_dynamic_batching_paused_buffer_size_gb
        inference_dynamic_batching_mamba_memory_ratio inference_dynamic_batching_block_size
        inference_dynamic_batching_max_requests inference_dynamic_batching_max_tokens
        inference_dynamic_batching_num_cuda_graphs inference_dynamic_batching_track_paused_request_events
        inference_dynamic_batching_track_generated_token_events decode_only_cuda_graphs
        inference_cuda_graph_all_prefills inference_cuda_graph_max_tokens
        inference_dynamic_batching_unified_memory_level enable_chunked_prefill num_speculative_tokens
        inference_dynamic_batching_enable_prefix_caching inference_dynamic_batching_prefix_caching_eviction_policy
        inference_dynamic_batching_prefix_caching_coordinator_policy
        inference_dynamic_batching_prefix_caching_routing_alpha inference_dynamic_batching_prefix_caching_mamba_gb
        inference_dynamic_batching_cuda_graph_mixed_prefill_count
        inference_dynamic_batching_cuda_graph_sizing_distribution inference_dynamic_batching_sampling_backend
        offset_sampling_seed_by_dp_rank inference_dynamic_batching_async_sched_mode
        inference_dynamic_batching_logprobs_mode inference_logging_step_interval inference_text_gen_server_logging
        inference_wandb_logging inference_coordinator_port mamba_inference_conv_states_dtype
        mamba_inference_ssm_states_dtype inference_use_synchronous_zmq_collectives inference_disable_ep_consensus
        inference_shards flash_decode nccl_all_reduce_for_prefill inference_fuse_tp_communication
        inference_disable_triton_nvls_kernels inference_grouped_gemm_backend
        inference_moe_disable_fused_quant_kernels inference_moe_token_dispatcher_type inference_cuda_graph_scope
        inference_rng_tracker mlp_chunks_for_prefill moe_pad_experts_for_cuda_graph_inference test_mode onnx_safe
    """,
    "a run is planned with one batch size, --global-batch-size; the engine itself ignores this flag": """
        rampup_batch_size
    """,
    "a run is planned with one batch size, --global-batch-size": """
        step_batch_size_schedule decrease_batch_size_if_needed
    """,
    "the engine has no such setting any more; --micro-batch-size and --global-batch-size say it": "batch_size",
    "the engine has no such setting any more; --lr-warmup-fraction says it": "warmup",
    "the engine has no such setting any more; --tensor-model-parallel-size says it": "model_parallel_size",
    "the engine has no such setting any more; --recompute-granularity says it": "checkpoint_activations",
    "the engine has no other models any more": "deprecated_use_mcore_models",
    "a decoder alone is trained; --seq-length is its length, and its layers are the model folder's": """
        encoder_seq_length encoder_num_layers decoder_seq_length decoder_num_layers
    """,
    "--make-vocab-size-divisible-by and --padded-vocab-size say how far the vocabulary is padded": """
        pad_vocab_size
    """,
    "nothing would be trained; tools/evaluate.py measures a model": "skip_train",
    "ranks that do not communicate train nothing": "fake_process_group",
}
REFUSED = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
"""Names among the engine's arguments, each with its reason."""

_CHOICE = "training would choose experts in another way than the exported model and the teacher"
REFUSED_VALUES = {
    "dataloader_type": {"external": "the samples come from the engine's own loaders"},
    "moe_flex_dispatcher_backend": {"ncclep": "it drops tokens above a capacity"},
    "moe_router_load_balancing_type": {"sinkhorn": _CHOICE, "quantile_balancing": _CHOICE},
    "transformer_impl": {"inference_optimized": "its layers do not train"},
}
"""Single values of flags that are served otherwise, by the argument's name, each with its reason."""
