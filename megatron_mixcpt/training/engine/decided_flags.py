"""Flags of the engine that something else decides in one kind of training: taking them silently would not train on what
they say. Each is refused with what decides it.
"""

_TOKENS = {
    "tokenizer_type": "the tokenizer is the model's",
    "tokenizer_model": "the tokenizer is the model's",
    "null_tokenizer_eod_id": "the tokenizer's end of sequence, or --eos-token of preprocessing, ends documents",
    "test_data_path": "there is no test set",
    "reset_attention_mask": "--document-masking keeps attention within documents",
}

DECIDED_IN_PRETRAINING = _TOKENS | {
    "data_path": "--mixture names the data",
    "valid_data_path": "--mixture names the data, and --split what is held out",
    "full_validation": "held-out samples (--split) are measured completely unless --eval-iters says how many batches",
    "multiple_validation_sets": "each kind's held-out samples (--split) are a set unless --eval-iters is given",
    "validation_set_names": "the kinds of the mixture and --validation name the sets",
    "sft": "tools/train_sft.py fine-tunes",
    "chat_template": "documents have no chat template",
}

_IN_STEPS = "the schedule is planned in steps here"
DECIDED_IN_ALIGNMENT = _TOKENS | {
    "data_path": "--sft or --dpo names the data",
    "valid_data_path": "--sft or --dpo names the data, and --held-out what is held out",
    "split": "--held-out says what is held out",
    "train_iters": "--epochs and --global-batch-size decide it",
    "train_samples": "--epochs decides it",
    "lr_decay_samples": f"{_IN_STEPS}; --lr-decay-iters says it in steps",
    "lr_warmup_samples": f"{_IN_STEPS}; --lr-warmup-iters says it in steps",
    "lr_wsd_decay_samples": f"{_IN_STEPS}; --lr-wsd-decay-iters says it in steps",
    "eval_iters": "every held-out sample is measured",
    "eval_global_batch_size": "every held-out sample is measured",
    "eval_micro_batch_size": "every held-out sample is measured",
    "full_validation": "every held-out sample is measured",
    "multiple_validation_sets": "the held-out samples are one set",
    "validation_set_names": "the held-out samples are one set",
    "pretrained_checkpoint": "--load names the checkpoint to start from, --save the one to resume",
    "dataloader_type": "each batch is --global-batch-size samples, in an order of its own in each epoch",
    "dataloader_inter_document_masking": "every sample attends to itself alone",
    "reset_attention_mask": "every sample attends to itself alone",
    "reset_position_ids": "every sample has positions of its own",
    "eod_mask_loss": "the chat template says what ends a response, and that is learned",
    "mmap_bin_files": "samples are not read from .bin files",
    "num_dataset_builder_threads": "samples are not read from .bin files",
}
