"""The sizes that tiny models share: small, but hard to divide."""

# Divides by neither 2 nor 3: every tensor parallel layout pads the vocabulary.
VOCAB_SIZE = 385
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "bos_token_id": None,
    "eos_token_id": 0,
}
