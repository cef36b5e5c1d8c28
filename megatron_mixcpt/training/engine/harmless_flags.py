"""What may differ between a run and the checkpoint that it resumes from: flags that change neither what is learned nor
the order of the samples, by reason.

Every other flag is compared (``run_record.py``). A flag that the engine adds is compared until it is named here.
"""

_ENGINE = {
    "where things lie": """
        save load pretrained_checkpoint tensorboard_dir wandb_save_dir data_cache_path
        non_persistent_global_ckpt_dir non_persistent_local_ckpt_dir memory_snapshot_path flight_recorder_dump_path
        config_logger_dir tokenizer_model nccl_communicator_config_path tp_comm_overlap_cfg moe_routing_trace_path
        result_rejected_tracker_filename
    """,
    "when and how checkpoints are written": """
        save_interval save_retain_interval save_params_interval save_activations_interval
        save_tokens_per_expert_interval save_wgrads_interval save_dgrads_interval non_persistent_save_interval
        non_persistent_ckpt_type non_persistent_local_ckpt_algo ckpt_format auto_detect_ckpt_format
        ckpt_convert_format ckpt_convert_save ckpt_convert_update_legacy_dist_opt_format ckpt_fully_parallel_save
        ckpt_fully_parallel_save_process_group ckpt_fully_parallel_save_deprecated async_save async_strategy
        use_persistent_ckpt_worker async_ckpt_cpu_priority async_ckpt_io_priority async_ckpt_use_cpu_shm
        ckpt_assume_constant_structure dist_ckpt_save_pre_mcore_014 dist_ckpt_optim_fully_reshardable
        distrib_optim_fully_reshardable_mem_efficient replication replication_jump replication_factor
        use_dist_ckpt_deprecated dist_ckpt_format_deprecated dist_ckpt_workers no_save_optim no_save_rng enable_msc
        disable_msc_deprecated
    """,
    "how this start reads its checkpoint": """
        finetune ckpt_step use_checkpoint_args use_mp_args_from_checkpoint_args
        use_tokenizer_model_from_checkpoint_args exit_on_missing_checkpoint load_main_params_from_ckpt
        ckpt_fully_parallel_load ckpt_fully_parallel_load_exchange_algo ckpt_fully_parallel_load_process_group
        ckpt_load_validate_sharding_integrity strict_fsdp_dtensor_load dist_ckpt_strictness verify_integrity
        stream_ckpt_dequant no_load_optim no_load_rng override_ckpt_iteration
    """,
    "the weights come from the checkpoint": """
        perform_initialization use_cpu_initialization init_method_std embedding_init_method_std
        init_method_xavier_uniform
    """,
    "the layout: the same sums over other ranks": """
        tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size sequence_parallel
        expert_model_parallel_size expert_tensor_parallel_size hierarchical_context_parallel_sizes
        cp_comm_type num_layers_per_virtual_pipeline_stage
        num_virtual_stages_per_pipeline_rank decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers
        pipeline_model_parallel_layout account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split
        microbatch_group_size_per_vp_stage micro_batch_size padded_vocab_size make_vocab_size_divisible_by
        use_distributed_optimizer num_distributed_optimizer_instances use_tp_pp_dp_mapping
        use_layer_wise_param_layout
    """,
    "the processes and their communication": """
        local_rank distributed_backend distributed_timeout_minutes distributed_timeout_seconds_after_init
        pipeline_model_parallel_comm_backend tp_comm_bootstrap_backend use_gloo_process_groups lazy_mpu_init
        use_sharp sharp_enabled_group high_priority_stream_groups high_priority_a2a_comm_stream
        use_ring_exchange_p2p overlap_p2p_comm overlap_p2p_comm_warmup_flush align_grad_reduce overlap_grad_reduce
        overlap_param_gather align_param_gather ddp_num_buckets
        ddp_bucket_size ddp_pad_buckets_for_high_nccl_busbw ddp_average_in_collective nccl_ub
        disable_symmetric_registration create_all_gather_group gradient_reduce_div_fusion
        suggested_communication_unit_size tp_comm_bulk_wgrad tp_comm_bulk_dgrad tp_comm_overlap_ag
        tp_comm_overlap_rs tp_comm_overlap_rs_dgrad tp_comm_split_ag tp_comm_split_rs moe_token_dispatcher_type
        moe_enable_deepep moe_flex_dispatcher_backend moe_flex_dispatcher_num_sms moe_deepep_num_sms
        moe_hybridep_num_sms moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute
        moe_hybridep_num_sms_preprocessing moe_permute_fusion_into_hybridep moe_hybridep_pad_uneven_dispatch_inputs
        moe_ncclep_static_shape moe_ncclep_zero_copy moe_shared_expert_overlap flight_recorder_trace_buffer_size
        flight_recorder_dump_on_timeout flight_recorder_include_stack_trace flight_recorder_include_only_active
        flight_recorder_extra_dump_on_exec
    """,
    "recomputation and offloading: the same numbers, held elsewhere": """
        recompute_activations recompute_granularity recompute_method recompute_num_layers recompute_modules
        distribute_saved_activations moe_layer_recompute min_offloaded_tensor_size
        delta_offload_bytes_across_pp_ranks activation_offload_fraction
        fine_grained_offloading_max_inflight_offloads moe_paged_stash_page_size
        moe_paged_stash_buffer_size_factor_cuda moe_paged_stash_buffer_size_factor_cpu pin_cpu_grads pin_cpu_params
        empty_unused_memory_level clone_scatter_output_in_embedding wgrad_deferral_limit keep_fp8_transpose_cache
    """,
    "other kernels for the same mathematics, by what the machine has": """
        transformer_impl attention_backend flash_attention_version use_flash_attn gradient_accumulation_fusion
        masked_softmax_fusion bias_gelu_fusion bias_swiglu_fusion bias_dropout_fusion apply_rope_fusion
        no_persist_layer_norm use_fused_weighted_squared_relu disable_jit_fuser moe_grouped_gemm
        use_grouped_gemm_for_shared_expert moe_permute_fusion
        moe_router_fusion mla_down_proj_fusion use_mamba_mem_eff_path cuda_graph_warmup_steps deterministic_mode
        batch_invariant_mode
    """,
    "reading the samples, in the same order": """
        num_workers mmap_bin_files num_dataset_builder_threads
    """,
    "measuring, not training": """
        eval_iters eval_interval start_eval_at_iter eval_global_batch_size eval_micro_batch_size full_validation
        multiple_validation_sets validation_set_names valid_data_path
    """,
    "logging, profiling and checks of the numbers": """
        log_interval log_params_norm log_throughput log_progress timing_log_level timing_log_option
        tensorboard_log_interval tensorboard_queue_size log_timers_to_tensorboard log_loss_scale_to_tensorboard
        log_validation_ppl_to_tensorboard log_memory_to_tensorboard log_memory_interval log_device_memory_used
        log_num_zeros_in_grad log_max_attention_logit barrier_with_L1_time log_world_size_to_tensorboard
        wandb_project wandb_exp_name wandb_entity logging_level log_energy moe_per_layer_logging
        moe_routing_trace_max_training_iters moe_routing_trace_capture_logits
        moe_routing_trace_capture_hidden_states moe_routing_trace_dump_weights enable_one_logger one_logger_project
        one_logger_run_name one_logger_async app_tag_run_name app_tag_run_version profile profile_step_start
        profile_step_end use_pytorch_profiler pytorch_profiler_collect_shapes pytorch_profiler_collect_callstack
        pytorch_profiler_collect_chakra profile_ranks record_memory_history record_shapes nvtx_ranges log_straggler
        straggler_ctrlr_port straggler_minmax_count disable_straggler_on_startup run_workload_inspector_server
        check_for_nan_in_loss_and_grad check_for_large_grads check_for_spiky_loss
        check_weight_hash_across_dp_replicas_interval gpu_sniff_test_interval train_sync_interval rerun_mode
        dump_param_to_param_group_map
    """,
    "when a run ends, and how it is restarted": """
        exit_interval exit_duration_in_mins exit_signal_handler exit_signal exit_signal_handler_for_dataloader
        exit_signal_handler_for_training manual_gc manual_gc_interval manual_gc_eval adlr_autoresume
        adlr_autoresume_interval inprocess_max_iterations inprocess_monitor_thread_interval
        inprocess_monitor_process_interval inprocess_progress_watchdog_interval inprocess_heartbeat_interval
        inprocess_soft_timeout inprocess_hard_timeout inprocess_heartbeat_timeout inprocess_barrier_timeout
        inprocess_completion_timeout inprocess_last_call_wait inprocess_termination_grace_time inprocess_granularity
        inprocess_active_world_size inprocess_empty_cuda_cache enable_ft_package calc_ft_timeouts
        ft_num_warmup_iters fault_injector_ranks fault_injector_num_ranks fault_injector_fault_types
        fault_injector_fault_probabilities fault_injector_fault_delay fault_injector_delay_start_iteration
        fault_injector_mtti_seconds fault_injector_offset_seconds fault_injector_seed
    """,
    "the engine compares the schedule (--override-opt_param-scheduler takes the new one)": """
        train_iters train_samples lr min_lr lr_decay_style lr_decay_iters lr_decay_samples lr_warmup_fraction
        lr_warmup_iters lr_warmup_samples weight_decay start_weight_decay end_weight_decay weight_decay_incr_style
        override_opt_param_scheduler use_checkpoint_opt_param_scheduler
    """,
    "it only bounds the length of a sequence, which is compared": "max_position_embeddings",
}

_OURS = {
    "where things lie; their content is compared": """
        --hf-model --mixture --teacher --sft --dpo --chat-template --lora-adapter
    """,
    "the number of sequences of each kind, which it decides, is compared": "--mixture-weights",
    "when checkpoints are deleted": "--keep-last",
    "what happens at the start": "--resume-with-changes --dry-run --assume-ranks",
    "the samples that they make are compared": """
        --on-bad-record --max-rejects --keep-templates --template-rules --include-held-out-splits
    """,
    "how many processes encode the samples": "--workers",
    "the same batches in other rows": "--packing",
    "measuring and logging, not training": "--loss-spike-sigma --validation --log-teacher-entropy --verbose",
    "the same mathematics in other kernels or another order of sums": "--deterministic --loss-chunk-tokens",
    "the same numbers, held or computed elsewhere": "--teacher-offload --precompute-reference",
}

HARMLESS_ENGINE_ARGUMENTS = {name: reason for reason, names in _ENGINE.items() for name in names.split()}
"""Names among the engine's arguments, each with its reason."""

HARMLESS_FLAGS = {flag: reason for reason, flags in _OURS.items() for flag in flags.split()}
"""Flags of ours, each with its reason."""
