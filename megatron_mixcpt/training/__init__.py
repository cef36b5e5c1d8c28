"""The entries into megatron.training.pretrain(): the layer that reads the engine's global arguments."""
