"""What low-rank adapters take: their parameters on a rank, and what they save for their backward pass.

A frozen linear layer saves nothing but its weight (``LinearWithFrozenWeight`` in megatron/core/tensor_parallel/
layers.py). Its adapter saves the input for A's gradient and, for B's, the product of A, which has as many columns as
the rank: of all tokens beside a column-parallel layer, and beside a row-parallel one of this rank's tokens where
sequence parallelism divides them. With dropout the input that A reads is a tensor of its own, and its mask a byte for
each number.
"""

from megatron_mixcpt.adapters.targets import COLUMN, side_of
from megatron_mixcpt.planning.layers import LayerShape, LinearShape
from megatron_mixcpt.planning.layout import PlannedRun


def adapted_linears(run: PlannedRun, layer: LayerShape) -> list[LinearShape]:
    """The linear layers of a layer that have an adapter; none where the model itself is trained."""
    lora = run.layout.lora
    return [linear for linear in layer.linears if lora.is_given and linear.name in lora.targets]


def num_adapter_parameters(run: PlannedRun) -> int:
    """Parameters of all adapters of the model, on all ranks together, each once."""
    linears = (linear for layer in run.model.layers for linear in adapted_linears(run, layer))
    return sum((run.layout.lora.lora_rank or 0) * (linear.rows + linear.columns) for linear in linears)


def adapter_parameters(run: PlannedRun, layer: LayerShape) -> int:
    """Of all adapters of a layer on each rank: one of A and B is divided as its linear layer is, the other is whole."""
    rank = run.layout.lora.lora_rank or 0
    return sum(rank * sum(_inputs_and_outputs(run, linear)) for linear in adapted_linears(run, layer))


def _inputs_and_outputs(run: PlannedRun, linear: LinearShape) -> tuple[int, int]:
    """Columns and rows of a linear layer on each rank."""
    tensor = run.sizes.tensor
    if side_of(linear.name) == COLUMN:
        return linear.columns, linear.rows // tensor
    return linear.columns // tensor, linear.rows


def adapter_bytes(run: PlannedRun, layer: LayerShape) -> int:
    """What the adapters of a layer save beyond inputs that the layer has anyway: products of A, and dropout's masks."""
    linears = adapted_linears(run, layer)
    if ("moe" if layer.expert else "mlp") in run.layout.recomputed_modules:
        linears = [linear for linear in linears if linear.name not in ("linear_fc1", "linear_fc2")]
    return sum(_saved_bytes(run, linear) for linear in linears)


def _saved_bytes(run: PlannedRun, linear: LinearShape) -> int:
    lora, number = run.layout.lora, run.layout.bytes_per_number
    own_tokens = run.tokens // (run.sizes.tensor if run.layout.sequence_parallel else 1)
    is_column, columns = side_of(linear.name) == COLUMN, _inputs_and_outputs(run, linear)[0]
    total = (run.tokens if is_column else own_tokens) * (lora.lora_rank or 0) * number
    if lora.lora_dropout:
        total += (own_tokens if is_column else run.tokens) * columns  # the mask
        if linear.name == "linear_proj":  # whose input attention saves as well
            total += run.tokens * columns * number
    return total
