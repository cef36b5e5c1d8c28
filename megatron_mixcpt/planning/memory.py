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
from megatron_mixcpt.planning.weights import (
    first_matrix,
    owned_parameters,
    stage_adapters,
    stage_parameters,
    teacher_bytes,
    trained_parameters,
    vocabulary_columns,
)

# Below so many logits the loss runs uncompiled, with so many float32 temporaries per model of so many numbers each
# (losses/compiled.py).
UNCOMPILED_BELOW, UNCOMPILED_TEMPORARIES, UNCOMPILED_NUMBERS = 2**22, 3, 2**18


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each rank of one pipeline stage."""

    student: int
    """With its adapters."""
    teacher: int
    """0 where the student with its adapters off is the teacher."""
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
    parameters = stage_parameters(run, stage) + stage_adapters(run, stage)
    owned = owned_parameters(run, stage)
    activations = _activations(run, stage)
    logits = _logits(run) if last else 0
    return StageMemory(
        student=parameters * run.layout.bytes_per_number,
        teacher=teacher_bytes(run, stage),
        gradients=trained_parameters(run, stage) * 4,
        optimizer=owned * (12 if run.layout.bf16 else 8),
        activations=activations,
        logits=logits,
        temporary=max(0, _largest_moment(run, stage) - logits, _optimizer_step(run, owned) - activations - logits),
    )


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
    columns, models = vocabulary_columns(run), 1 + run.layout.objective.runs_teacher
    tokens = min(run.layout.loss_chunk_tokens or run.tokens, run.tokens)
    numbers = tokens * columns
    total = models * numbers * run.layout.bytes_per_number
    if numbers < UNCOMPILED_BELOW:
        total += models * UNCOMPILED_TEMPORARIES * min(numbers, UNCOMPILED_NUMBERS) * 4
    if run.layout.loss_chunk_tokens and run.makes_weight_gradients:
        # The output weight's gradient: the float32 sum, and what a chunk adds to it.
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
    columns = vocabulary_columns(run)
    total = run.tokens * (columns + run.model.hidden_size) * run.layout.bytes_per_number
    if run.makes_weight_gradients and not run.layout.gradient_accumulation_fusion:
        total += columns * run.model.hidden_size * run.layout.bytes_per_number
    return 0 if run.layout.loss_chunk_tokens else total


def _layer_backward(run: PlannedRun, layer: LayerShape) -> int:
    """The MLP's: gradients of its halves and what makes them, and of its weight, unless the buffer takes that."""
    if layer.expert:
        return _experts_backward(run, layer)
    numbers = 2 * run.model.inner_products * run.tokens * layer.inner // run.sizes.tensor
    if run.makes_weight_gradients and not run.layout.gradient_accumulation_fusion:
        numbers += first_matrix(run, layer)
    return numbers * run.layout.bytes_per_number


def _attention_backward(run: PlannedRun) -> int:
    """Where keys and values are gathered, their gradients: summed, of a chunk, and of a chunk in its place.

    Recomputed, attention gathers them again. Elsewhere the MLP's backward pass takes more.
    """
    if not run.gathers_keys:
        return 0
    copies = 4 if "core_attn" in run.layout.recomputed_modules else 3
    return run.tokens * copies * gathered_columns(run) * run.layout.bytes_per_number


def _experts_backward(run: PlannedRun, layer: LayerShape) -> int:
    """As an MLP's, for the rows of all experts, which are there in two orders."""
    inner = run.model.moe_ffn_hidden_size // run.sizes.expert_tensor
    numbers = run.routed_rows * (2 * run.model.inner_products * inner + 2 * run.model.hidden_size)
    is_fused = run.layout.gradient_accumulation_fusion and run.layout.transformer_impl == "transformer_engine"
    if run.makes_weight_gradients and not is_fused:
        numbers += first_matrix(run, layer)
    return numbers * run.layout.bytes_per_number
