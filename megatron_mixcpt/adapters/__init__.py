"""Low-rank adapters (LoRA): a frozen base model, which with its adapters off is its own teacher."""
