"""Bytes of every pipeline stage's ranks: what is there all the time, and the most that a step adds to it.

Always there are the weights of student and teacher, the gradient buffer and the optimizer's state. A step adds the
activations of the microbatches in flight and, for one moment each, what the loss, the output weight's gradient, a
layer's backward pass or the optimizer's step need; the largest of these moments makes the peak.
"""

from dataclasses import dataclass, fields

from megatron_mixcpt.planning.activations import (
    chunk_bytes,
    edge_bytes,
    gathered_columns,
    hidden_bytes,
    recomputed_bytes,
)
from megatron_mixcpt.planning.layers import LayerShape
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.shapes import ModelShape

# Below so many logits the loss runs uncompiled, with so many float32 temporaries per model of so many numbers each
# (losses/compiled.py).
UNCOMPILED_BELOW, UNCOMPILED_TEMPORARIES, UNCOMPILED_NUMBERS = 2**22, 3, 2**18


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each rank of one pipeline stage."""

    student: int
    teacher: int
    gradients: int
    optimizer: int
    activations: int
    """Of all microbatches in flight."""
    logits: int
    """Both models', and what the loss needs beside them; 0 but on the last stage."""
    temporary: int
    """What the largest moment of a step takes beyond the logits."""

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def plan_memory(model: ModelShape, layout: Layout) -> list[StageMemory]:
    """The memory of every pipeline stage, the first one first.

    Raises:
        ConfigError: the trainer would refuse this layout.
    """
    run = PlannedRun.of(model, layout)
    return [_stage_memory(run, stage) for stage in range(run.sizes.pipeline)]


def _stage_memory(run: PlannedRun, stage: int) -> StageMemory:
    last = stage == run.sizes.pipeline - 1
    parameters = stage_parameters(run, stage)
    owned = _owned_parameters(run, stage)
    activations = _activations(run, stage)
    logits = _logits(run) if last else 0
    return StageMemory(
        student=parameters * run.layout.bytes_per_number,
        teacher=_teacher(run, stage),
        gradients=parameters * 4,
        optimizer=owned * (12 if run.layout.bf16 else 8),
        activations=activations,
        logits=logits,
        temporary=max(0, _largest_moment(run, stage) - logits, _optimizer_step(run, owned) - activations - logits),
    )


def stage_parameters(run: PlannedRun, stage: int) -> int:
    """Parameters on each rank of a stage; where embedding and output weight are tied, both end stages hold them."""
    layers = sum(_layer_parameters(run, layer) for layer in run.layers_of(stage))
    return layers + _parameters_outside_layers(run, stage)


def _layer_parameters(run: PlannedRun, layer: LayerShape) -> int:
    return _layer_matrices(run, layer) + layer.copied


def _layer_matrices(run: PlannedRun, layer: LayerShape) -> int:
    """Parameters of a layer's matrices on each rank: its part of the layer, and of the experts that it holds."""
    return layer.divided // run.sizes.tensor + _layer_experts(run, layer)


def _layer_experts(run: PlannedRun, layer: LayerShape) -> int:
    return run.local_experts * layer.expert // run.sizes.expert_tensor


def _parameters_outside_layers(run: PlannedRun, stage: int) -> int:
    first, last = stage == 0, stage == run.sizes.pipeline - 1
    vocabularies = 1 if first and last and run.model.tied else first + last
    return vocabularies * _vocabulary_columns(run) * run.model.hidden_size + (run.model.norm_size if last else 0)


def _vocabulary_columns(run: PlannedRun) -> int:
    """Of one rank; the vocabulary is padded to a multiple of TP."""
    return -(-run.model.vocab_size // run.sizes.tensor)


def _teacher(run: PlannedRun, stage: int) -> int:
    """The frozen weights, in the student's precision; offloaded, two layers' buffers and what is outside the layers.

    In 8 bits there is a copy of each layer's matrices beside them, or of one matrix at a time where they are offloaded.
    """
    layout, layers_of_stage = run.layout, run.layers_of(stage)
    if not layout.objective.holds_teacher:
        return 0
    if layout.teacher_offload == "none":
        fp8_bytes = sum(_layer_matrices(run, layer) for layer in layers_of_stage)
        total = stage_parameters(run, stage) * layout.bytes_per_number
    else:
        fp8_bytes = max(_first_matrix(run, layer) for layer in layers_of_stage)
        layers = 2 * max(_layer_parameters(run, layer) for layer in layers_of_stage)
        total = (layers + _parameters_outside_layers(run, stage)) * layout.bytes_per_number
    return total + (fp8_bytes if layout.teacher_fp8 else 0)


def teacher_host_bytes(run: PlannedRun) -> int:
    """Page-locked memory that a rank takes of its host for the teacher's layers, of the stage that takes most."""
    if run.layout.teacher_offload == "none":
        return 0
    stages = range(run.sizes.pipeline)
    numbers = max(sum(_layer_parameters(run, layer) for layer in run.layers_of(stage)) for stage in stages)
    return numbers * run.layout.bytes_per_number


def _owned_parameters(run: PlannedRun, stage: int) -> int:
    """Those of a rank's parameters whose optimizer state it holds: float32 moments, and of bfloat16 a float32 copy.

    Sharded, a share of the experts over the ranks that hold copies of them, and of the rest over those that hold it.
    """
    parameters = stage_parameters(run, stage)
    if not run.layout.use_distributed_optimizer:
        return parameters
    experts = sum(_layer_experts(run, layer) for layer in run.layers_of(stage))
    return (parameters - experts) // (run.sizes.data * run.sizes.context) + experts // run.sizes.expert_data


def _optimizer_step(run: PlannedRun, owned: int) -> int:
    """The square roots of all second moments, which PyTorch's AdamW makes at once on a GPU.

    The Adam of Transformer Engine and that of Apex, one of which the engine takes where it is installed, make none.
    """
    layout = run.layout
    is_fused = layout.transformer_impl == "transformer_engine" or layout.gradient_accumulation_fusion
    return 0 if is_fused else 4 * owned


def _activations(run: PlannedRun, stage: int) -> int:
    in_flight = run.chunks_in_flight(stage)
    first, last = stage == 0, stage == run.sizes.pipeline - 1
    edges = edge_bytes(run, first=first, last=last)
    return in_flight * (max(chunk_bytes(run, chunk) for chunk in run.chunks_of(stage)) + edges)


def _logits(run: PlannedRun) -> int:
    """Logits of the microbatch or of a chunk of its tokens, the gradient taking the student's place."""
    columns, models = _vocabulary_columns(run), 1 + run.layout.objective.runs_teacher
    tokens = min(run.layout.loss_chunk_tokens or run.tokens, run.tokens)
    numbers = tokens * columns
    total = models * numbers * run.layout.bytes_per_number
    if numbers < UNCOMPILED_BELOW:
        total += models * UNCOMPILED_TEMPORARIES * min(numbers, UNCOMPILED_NUMBERS) * 4
    if run.layout.loss_chunk_tokens:  # the output weight's gradient: the float32 sum, and what a chunk adds to it
        total += columns * run.model.hidden_size * (4 + run.layout.bytes_per_number)
    return total


def _largest_moment(run: PlannedRun, stage: int) -> int:
    """The most that a moment of the step adds to weights, gradients, optimizer and activations."""
    last = stage == run.sizes.pipeline - 1
    layers = max(_layer_backward(run, layer) for layer in run.layers_of(stage))
    recomputed = max(recomputed_bytes(run, chunk) for chunk in run.chunks_of(stage))
    moments = [recomputed + max(layers, _attention_backward(run))]
    hidden = hidden_bytes(run)
    if last:
        moments.append(_logits(run) + hidden)
        moments.append(_output_layer_backward(run))
    return max(moments)


def _output_layer_backward(run: PlannedRun) -> int:
    """The logits' gradient, and of it the hidden states' and the weight's, unless the gradient buffer takes that."""
    columns = _vocabulary_columns(run)
    total = run.tokens * (columns + run.model.hidden_size) * run.layout.bytes_per_number
    if not run.layout.gradient_accumulation_fusion:
        total += columns * run.model.hidden_size * run.layout.bytes_per_number
    return 0 if run.layout.loss_chunk_tokens else total


def _layer_backward(run: PlannedRun, layer: LayerShape) -> int:
    """The MLP's: gradients of its halves and what makes them, and of its weight, unless the buffer takes that."""
    if layer.expert:
        return _experts_backward(run, layer)
    numbers = 2 * run.model.inner_products * run.tokens * layer.inner // run.sizes.tensor
    if not run.layout.gradient_accumulation_fusion:
        numbers += _first_matrix(run, layer)
    return numbers * run.layout.bytes_per_number


def _attention_backward(run: PlannedRun) -> int:
    """Where keys and values are gathered, their gradients: summed, of a chunk, and of a chunk in its place.

    Recomputed, attention gathers them again. Elsewhere the MLP's backward pass takes more.
    """
    if not run.gathers_keys:
        return 0
    copies = 4 if "core_attn" in run.layout.recomputed_modules else 3
    return run.tokens * copies * gathered_columns(run) * run.layout.bytes_per_number


def _first_matrix(run: PlannedRun, layer: LayerShape) -> int:
    """Parameters of the MLP's first layer on a rank, or of its experts' together."""
    model, halves = run.model, run.model.inner_products - 1
    if layer.expert:
        return run.local_experts * halves * model.moe_ffn_hidden_size * model.hidden_size // run.sizes.expert_tensor
    return halves * layer.inner * model.hidden_size // run.sizes.tensor


def _experts_backward(run: PlannedRun, layer: LayerShape) -> int:
    """As an MLP's, for the rows of all experts, which are there in two orders."""
    inner = run.model.moe_ffn_hidden_size // run.sizes.expert_tensor
    numbers = run.routed_rows * (2 * run.model.inner_products * inner + 2 * run.model.hidden_size)
    if not run.layout.gradient_accumulation_fusion or run.layout.transformer_impl == "local":
        numbers += _first_matrix(run, layer)
    return numbers * run.layout.bytes_per_number
