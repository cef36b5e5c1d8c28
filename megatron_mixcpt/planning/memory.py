"""Bytes of every pipeline stage's ranks: what is there all the time, and the most that a step adds to it.

Always there are the weights of student and teacher, the gradient buffer and the optimizer's state. A step adds the
activations of the microbatches in flight and, for one moment each, what the loss, the output weight's gradient, a
layer's backward pass or the optimizer's step need; the largest of these moments makes the peak.
"""

from dataclasses import dataclass, fields

from megatron_mixcpt.planning.activations import chunk_bytes, edge_bytes, hidden_bytes, recomputed_bytes
from megatron_mixcpt.planning.layout import Layout
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
        ConfigError: the model cannot be split so.
    """
    layout.check(model)
    return [_stage_memory(model, layout, stage) for stage in range(layout.pipeline_model_parallel_size)]


def _stage_memory(model: ModelShape, layout: Layout, stage: int) -> StageMemory:
    last = stage == layout.pipeline_model_parallel_size - 1
    parameters = stage_parameters(model, layout, stage)
    activations = _activations(model, layout, stage)
    logits = _logits(model, layout) if last else 0
    return StageMemory(
        student=parameters * layout.bytes_per_number,
        teacher=_teacher(model, layout, stage),
        gradients=parameters * 4,
        optimizer=_optimizer(parameters, layout),
        activations=activations,
        logits=logits,
        temporary=max(0, _largest_moment(model, layout, last) - logits),
    )


def stage_parameters(model: ModelShape, layout: Layout, stage: int) -> int:
    """Parameters on each rank of a stage; where embedding and output weight are tied, both end stages hold them."""
    layers = layout.layers_per_chunk(model) * layout.num_virtual_stages_per_pipeline_rank
    total = layers * (model.layer_matrices // layout.tensor_model_parallel_size + model.layer_norms)
    return total + _parameters_outside_layers(model, layout, stage)


def _parameters_outside_layers(model: ModelShape, layout: Layout, stage: int) -> int:
    first, last = stage == 0, stage == layout.pipeline_model_parallel_size - 1
    vocabularies = 1 if first and last and model.tied else first + last
    return vocabularies * _vocabulary_columns(model, layout) * model.hidden_size + (model.hidden_size if last else 0)


def _vocabulary_columns(model: ModelShape, layout: Layout) -> int:
    """Of one rank; the vocabulary is padded to a multiple of TP."""
    return -(-model.vocab_size // layout.tensor_model_parallel_size)


def _teacher(model: ModelShape, layout: Layout, stage: int) -> int:
    """The frozen weights, in the student's precision; offloaded, two layers' buffers and what is outside the layers."""
    if not layout.holds_teacher:
        return 0
    if layout.teacher_offload == "none":
        return stage_parameters(model, layout, stage) * layout.bytes_per_number
    layer = model.layer_matrices // layout.tensor_model_parallel_size + model.layer_norms
    return (2 * layer + _parameters_outside_layers(model, layout, stage)) * layout.bytes_per_number


def _optimizer(parameters: int, layout: Layout) -> int:
    """Adam's two float32 moments, and for bfloat16 weights a float32 copy of them, sharded over data parallel ranks."""
    total = parameters * (12 if layout.dtype == "bf16" else 8)
    shards = layout.data_parallel_size * layout.context_parallel_size if layout.use_distributed_optimizer else 1
    return total // shards


def _activations(model: ModelShape, layout: Layout, stage: int) -> int:
    in_flight = layout.chunks_in_flight(stage)
    first, last = stage == 0, stage == layout.pipeline_model_parallel_size - 1
    edges = edge_bytes(model, layout, first=first, last=last)
    return in_flight * (chunk_bytes(model, layout) + edges)


def _logits(model: ModelShape, layout: Layout) -> int:
    """Logits of the microbatch or of a chunk of its tokens, the gradient taking the student's place."""
    columns, models = _vocabulary_columns(model, layout), 1 + layout.runs_teacher
    tokens = min(layout.loss_chunk_tokens or layout.tokens, layout.tokens)
    numbers = tokens * columns
    total = models * numbers * layout.bytes_per_number
    if numbers < UNCOMPILED_BELOW:
        total += models * UNCOMPILED_TEMPORARIES * min(numbers, UNCOMPILED_NUMBERS) * 4
    if layout.loss_chunk_tokens:  # the output weight's gradient: the float32 sum, and what a chunk adds to it
        total += columns * model.hidden_size * (4 + layout.bytes_per_number)
    return total


def _largest_moment(model: ModelShape, layout: Layout, last: bool) -> int:
    """The most that a moment of the step adds to weights, gradients, optimizer and activations."""
    moments = [recomputed_bytes(model, layout) + _layer_backward(model, layout)]
    hidden = hidden_bytes(model, layout)
    if last:
        moments.append(_logits(model, layout) + hidden)
        moments.append(_output_layer_backward(model, layout))
    return max(moments)


def _output_layer_backward(model: ModelShape, layout: Layout) -> int:
    """The logits' gradient, and of it the hidden states' and the weight's, unless the gradient buffer takes that."""
    columns = _vocabulary_columns(model, layout)
    total = layout.tokens * (columns + model.hidden_size) * layout.bytes_per_number
    if not layout.gradient_accumulation_fusion:
        total += columns * model.hidden_size * layout.bytes_per_number
    return 0 if layout.loss_chunk_tokens else total


def _layer_backward(model: ModelShape, layout: Layout) -> int:
    """The MLP's: gradients of its halves and what makes them, and of its weight, unless the buffer takes that."""
    ffn = model.ffn_hidden_size // layout.tensor_model_parallel_size
    total = 6 * layout.tokens * ffn * layout.bytes_per_number
    if not layout.gradient_accumulation_fusion:
        total += 2 * ffn * model.hidden_size * layout.bytes_per_number
    return total
