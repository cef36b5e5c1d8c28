"""What one microbatch leaves in memory between its forward and its backward pass, in bytes, by what holds it.

Counted are the tensors that autograd saves, each once. Per token, with h the hidden size, q and k the columns of
queries and keys on this rank, f those of the MLP: a layer saves the inputs of both norms (2 h) and of both
column-parallel products (2 h), rotated queries and keys beside the product they come from (2 q + 3 k), the attention's
output (q), and the MLP's two halves and their product (3 f). Without Transformer Engine each norm also keeps its
quotient before the weight (2 h more). Attention keeps no matrix of scores, but a float32 number per head and token.
Sequence parallelism splits what has h columns over the tensor-parallel ranks.
"""

from megatron_mixcpt.planning.layout import Layout
from megatron_mixcpt.planning.shapes import ModelShape

# int64 tokens, labels and positions, float32 loss mask.
BATCH_BYTES_PER_TOKEN = 28


def hidden_bytes(model: ModelShape, layout: Layout) -> int:
    """Of one tensor of hidden states, as it lies between layers."""
    split = layout.tensor_model_parallel_size if layout.sequence_parallel else 1
    return layout.tokens * model.hidden_size * layout.bytes_per_number // split


def layer_bytes(model: ModelShape, layout: Layout) -> int:
    """What one layer saves for its backward pass, recomputing what ``recompute_modules`` names."""
    dropped = layout.recompute_modules if layout.recompute_granularity == "selective" else ()
    hidden, norms = 2, 2 if layout.transformer_impl == "transformer_engine" else 4
    columns = 3 * model.query_size + 3 * model.kv_size
    if "layernorm" in dropped:
        norms = 0
    if "mlp" not in dropped:
        columns += 3 * model.ffn_hidden_size
    numbers = layout.tokens * columns // layout.tensor_model_parallel_size * layout.bytes_per_number
    # Float32: the norms' scales, and the attention's log-sum-exp.
    statistics = 4 * layout.tokens * (2 + model.num_attention_heads // layout.tensor_model_parallel_size)
    return (hidden + norms) * hidden_bytes(model, layout) + numbers + statistics


def chunk_bytes(model: ModelShape, layout: Layout) -> int:
    """What the layers of one chunk save, with full recomputation only the inputs of the recomputed parts."""
    layers = layout.layers_per_chunk(model)
    if layout.recompute_granularity != "full":
        return layers * layer_bytes(model, layout)
    hidden, group = hidden_bytes(model, layout), layout.recompute_num_layers
    if layout.recompute_method == "uniform":
        return -(-layers // group) * hidden
    recomputed = min(layers, group)
    return recomputed * hidden + (layers - recomputed) * layer_bytes(model, layout)


def recomputed_bytes(model: ModelShape, layout: Layout) -> int:
    """What a backward pass with recomputation brings back at a time, beyond what was saved."""
    if layout.recompute_granularity == "full":
        at_once = min(layout.recompute_num_layers, layout.layers_per_chunk(model))
        return (at_once if layout.recompute_method == "uniform" else 1) * layer_bytes(model, layout)
    return 0


def edge_bytes(model: ModelShape, layout: Layout, *, first: bool, last: bool) -> int:
    """What a stage holds per microbatch beside its layers: the batch, the teacher's half of a message, the norm."""
    hidden = hidden_bytes(model, layout)
    total = layout.tokens * BATCH_BYTES_PER_TOKEN
    if not first and layout.runs_teacher:
        total += hidden  # the message that the student's hidden states arrived in
    if last:
        total += (2 if layout.transformer_impl == "transformer_engine" else 3) * hidden
    return total
