"""What one microbatch leaves in memory between its forward and its backward pass, in bytes, by what holds it.

Counted are the tensors that autograd saves, each once. Per token, with h the hidden size, q and k the columns of
queries and keys on this rank, f those of the MLP: a layer saves the inputs of both norms (2 h) and of both
column-parallel products (2 h), rotated queries and keys beside the product they come from (2 q + 3 k), the attention's
output (q), and the MLP's two halves and their product (3 f). Where attention repeats keys and values for each query
head (models/attention.py), it saves these (2 q) and not the product. Where ranks share a query group, the engine
gathers the product of all ranks on each, and its values are a part of it; the rotated keys are then one group's.
Where context parallelism splits the sequence, without Transformer Engine, keys and values are those of the whole
sequence (2 k cp, repeated 2 q cp), in the place of product and rotated keys, and each of the two chunks has an output
beside the one that they are put together in. A mixture of experts saves its experts' inputs and products (h + 3 f) for
each row that they get instead, of which a token makes as many as it goes to experts.
Without Transformer Engine each norm also keeps its quotient before the weight (2 h more). Frozen layers save no input,
but adapters beside them do (planning/adapters.py), and a frozen norm keeps no quotient. Attention keeps no matrix of
scores, but a float32 number per head and token. Sequence parallelism splits what has h columns over the tensor-parallel
ranks.
"""

from collections.abc import Sequence

from megatron_mixcpt.planning.adapters import adapted_linears, adapter_bytes
from megatron_mixcpt.planning.layers import LayerShape
from megatron_mixcpt.planning.layout import PlannedRun

# int64 tokens, labels and positions, float32 loss mask.
BATCH_BYTES_PER_TOKEN = 28
# Of a row that was sent to an expert: its place, int64, on both ways, and its weight in float32.
ROUTED_ROW_BYTES = 20
# The linear layers that read the norm before attention.
ATTENTION_INPUTS = {"linear_qkv", "linear_q_proj"}
# Of a token and an expert: scores, weights and a mask, each in several forms.
ROUTER_BYTES = 20


def hidden_bytes(run: PlannedRun) -> int:
    """One tensor of hidden states, as it lies between layers."""
    split = run.sizes.tensor if run.layout.sequence_parallel else 1
    return run.tokens * run.model.hidden_size * run.layout.bytes_per_number // split


def layer_bytes(run: PlannedRun, layer: LayerShape) -> int:
    """What one layer saves for its backward pass, except for the modules that it recomputes."""
    model, recomputed = run.model, run.layout.recomputed_modules
    hidden, norms = 2, _norm_outputs(run, layer)
    columns = attention_columns(run)
    if "layernorm" in recomputed:
        norms = 0
    if ("moe" if layer.expert else "mlp") not in recomputed:
        columns += _mlp_products(run, layer) * layer.inner // run.sizes.tensor
    numbers = run.tokens * columns * run.layout.bytes_per_number + (expert_bytes(run) if layer.expert else 0)
    # Float32: the norms' scales, and the attention's log-sum-exp.
    statistics = 4 * run.tokens * (2 + model.num_attention_heads // run.sizes.tensor)
    return (hidden + norms) * hidden_bytes(run) + numbers + statistics + adapter_bytes(run, layer)


def _norm_outputs(run: PlannedRun, layer: LayerShape) -> int:
    """Results of both norms that are saved, and quotients, which a norm needs for the gradient of its weight."""
    if run.makes_weight_gradients:
        return 2 if run.layout.transformer_impl == "transformer_engine" else 4
    readers = {linear.name for linear in adapted_linears(run, layer)}
    # A router saves its input whether or not it is trained.
    return bool(readers & ATTENTION_INPUTS) + bool(layer.expert or "linear_fc1" in readers)


def _mlp_products(run: PlannedRun, layer: LayerShape) -> int:
    """Of what an MLP makes for each of its columns, that which is saved: the product is not where nothing reads it."""
    is_read = run.makes_weight_gradients or any(linear.name == "linear_fc2" for linear in adapted_linears(run, layer))
    return run.model.inner_products - (not is_read)


def expert_bytes(run: PlannedRun) -> int:
    """What router and experts save: each row's place, input, halves and their product, and scores of each expert."""
    model, recomputed = run.model, run.layout.recomputed_modules
    if "moe" in recomputed:
        return 0
    inner, products = model.moe_ffn_hidden_size // run.sizes.expert_tensor, model.inner_products
    if run.makes_weight_gradients:
        columns = model.hidden_size + (products - 1 if "moe_act" in recomputed else products) * inner
    else:
        columns = (products - 1) * inner  # frozen layers save no input
    rows = run.routed_rows * (columns * run.layout.bytes_per_number + ROUTED_ROW_BYTES)
    return rows + run.tokens // run.sizes.tensor * model.num_experts * ROUTER_BYTES


def attention_columns(run: PlannedRun) -> int:
    """What attention saves for each token of a layer, in numbers: product, rotated queries and keys, and output.

    Recomputed, attention saves these whether or not it repeats or gathers keys and values.
    """
    model, tensor = run.model, run.sizes.tensor
    if "core_attn" not in run.layout.recomputed_modules:
        if run.gathers_keys:
            outputs = 1 if run.makes_document_mask else 2
            return (1 + outputs) * model.query_size // tensor + gathered_columns(run)
        if _repeats_heads(run):
            return 4 * model.query_size // tensor  # rotated queries; keys and values of each head; output
    if model.num_query_groups >= tensor:
        return 3 * (model.query_size + model.kv_size) // tensor
    return model.query_size + 2 * model.kv_size + model.kv_channels + 2 * model.query_size // tensor


def gathered_columns(run: PlannedRun) -> int:
    """Keys and values of the whole sequence for each token of a rank, in numbers."""
    model, tensor = run.model, run.sizes.tensor
    keys = model.query_size // tensor if _repeats_heads(run) else max(model.kv_size // tensor, model.kv_channels)
    return 2 * keys * run.sizes.context


def _repeats_heads(run: PlannedRun) -> bool:
    """Without Transformer Engine: where flash attention cannot serve groups of query heads."""
    groups = max(run.model.num_query_groups, run.sizes.tensor)
    is_served = run.layout.bf16 and not run.makes_document_mask
    return run.layout.transformer_impl == "local" and not is_served and run.model.num_attention_heads > groups


def chunk_bytes(run: PlannedRun, layers: Sequence[LayerShape]) -> int:
    """What the layers of one chunk save, with full recomputation only the inputs of the recomputed parts."""
    if not run.layout.recomputes_layers:
        return sum(layer_bytes(run, layer) for layer in layers)
    hidden, group = hidden_bytes(run), run.layout.recompute_num_layers or 1
    if run.layout.recompute_method == "uniform":
        return -(-len(layers) // group) * hidden
    recomputed = min(len(layers), group)
    return recomputed * hidden + sum(layer_bytes(run, layer) for layer in layers[recomputed:])


def recomputed_bytes(run: PlannedRun, layers: Sequence[LayerShape]) -> int:
    """What a backward pass with recomputation brings back of a chunk at a time, beyond what was saved."""
    if not run.layout.recomputes_layers:
        return 0
    group = run.layout.recompute_num_layers or 1 if run.layout.recompute_method == "uniform" else 1
    sizes = [layer_bytes(run, layer) for layer in layers]
    return max(sum(sizes[start : start + group]) for start in range(0, len(sizes), group))


def edge_bytes(run: PlannedRun, *, first: bool, last: bool) -> int:
    """What a stage holds per microbatch beside its layers: the batch, the teacher's half of a message, the norm."""
    hidden = hidden_bytes(run)
    total = run.tokens * BATCH_BYTES_PER_TOKEN
    if run.makes_document_mask:
        total += run.tokens * run.layout.seq_length * run.layout.bytes_per_number  # rows for this rank's tokens
    if not first and run.layout.objective.runs_teacher:
        total += hidden  # the message that the student's hidden states arrived in
    if last:
        total += _last_norm(run) * hidden
    return total


def _last_norm(run: PlannedRun) -> int:
    """Hidden states that are held beside the loss: the last norm's input, quotient and result."""
    if run.makes_weight_gradients:
        return 2 if run.layout.transformer_impl == "transformer_engine" else 3
    return 2 if run.layout.loss_chunk_tokens else 1  # in the result's place its gradient, which the chunks add up
