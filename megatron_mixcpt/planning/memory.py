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
    owned = _owned_parameters(run, parameters)
    activations = _activations(run, stage)
    logits = _logits(run) if last else 0
    return StageMemory(
        student=parameters * run.layout.bytes_per_number,
        teacher=_teacher(run, stage),
        gradients=parameters * 4,
        optimizer=owned * (12 if run.layout.bf16 else 8),
        activations=activations,
        logits=logits,
        temporary=max(0, _largest_moment(run, last) - logits, _optimizer_step(run, owned) - activations - logits),
    )


def stage_parameters(run: PlannedRun, stage: int) -> int:
    """Parameters on each rank of a stage; where embedding and output weight are tied, both end stages hold them."""
    layers = run.layers_per_chunk * run.sizes.chunks
    return layers * (_layer_matrices(run) + run.model.layer_norms) + _parameters_outside_layers(run, stage)


def _layer_matrices(run: PlannedRun) -> int:
    """Parameters of a layer's matrices on each rank: its part of the layer, and of the experts that it holds."""
    return run.model.layer_matrices // run.sizes.tensor + _layer_experts(run)


def _layer_experts(run: PlannedRun) -> int:
    return run.local_experts * run.model.expert_matrices // run.sizes.expert_tensor


def _parameters_outside_layers(run: PlannedRun, stage: int) -> int:
    first, last = stage == 0, stage == run.sizes.pipeline - 1
    vocabularies = 1 if first and last and run.model.tied else first + last
    return vocabularies * _vocabulary_columns(run) * run.model.hidden_size + (run.model.hidden_size if last else 0)


def _vocabulary_columns(run: PlannedRun) -> int:
    """Of one rank; the vocabulary is padded to a multiple of TP."""
    return -(-run.model.vocab_size // run.sizes.tensor)


def _teacher(run: PlannedRun, stage: int) -> int:
    """The frozen weights, in the student's precision; offloaded, two layers' buffers and what is outside the layers.

    In 8 bits there is a copy of each layer's matrices beside them, or of one matrix at a time where they are offloaded.
    """
    layout, matrices = run.layout, _layer_matrices(run)
    if not layout.objective.holds_teacher:
        return 0
    if layout.teacher_offload == "none":
        fp8_bytes = run.layers_per_chunk * run.sizes.chunks * matrices
        total = stage_parameters(run, stage) * layout.bytes_per_number
    else:
        fp8_bytes = _first_matrix(run)
        layers = 2 * (matrices + run.model.layer_norms)
        total = (layers + _parameters_outside_layers(run, stage)) * layout.bytes_per_number
    return total + (fp8_bytes if layout.teacher_fp8 else 0)


def teacher_host_bytes(run: PlannedRun) -> int:
    """Page-locked memory that each rank takes of its host for the teacher's layers."""
    if run.layout.teacher_offload == "none":
        return 0
    layer = _layer_matrices(run) + run.model.layer_norms
    return run.layers_per_chunk * run.sizes.chunks * layer * run.layout.bytes_per_number


def _owned_parameters(run: PlannedRun, parameters: int) -> int:
    """Those of a rank's parameters whose optimizer state it holds: float32 moments, and of bfloat16 a float32 copy.

    Sharded, a share of the experts over the ranks that hold copies of them, and of the rest over those that hold it.
    """
    if not run.layout.use_distributed_optimizer:
        return parameters
    experts = run.layers_per_chunk * run.sizes.chunks * _layer_experts(run)
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
    return in_flight * (chunk_bytes(run) + edges)


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


def _largest_moment(run: PlannedRun, last: bool) -> int:
    """The most that a moment of the step adds to weights, gradients, optimizer and activations."""
    moments = [recomputed_bytes(run) + max(_layer_backward(run), _attention_backward(run))]
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


def _layer_backward(run: PlannedRun) -> int:
    """The MLP's: gradients of its halves and what makes them, and of its weight, unless the buffer takes that."""
    if run.model.num_experts:
        return _experts_backward(run)
    numbers = 6 * run.tokens * run.model.ffn_hidden_size // run.sizes.tensor
    if not run.layout.gradient_accumulation_fusion:
        numbers += _first_matrix(run)
    return numbers * run.layout.bytes_per_number


def _attention_backward(run: PlannedRun) -> int:
    """Where keys and values are gathered, their gradients: summed, of a chunk, and of a chunk in its place.

    Recomputed, attention gathers them again. Elsewhere the MLP's backward pass takes more.
    """
    if not run.gathers_keys:
        return 0
    copies = 4 if "core_attn" in run.layout.recomputed_modules else 3
    return run.tokens * copies * gathered_columns(run) * run.layout.bytes_per_number


def _first_matrix(run: PlannedRun) -> int:
    """Parameters of the MLP's first layer on a rank, or of its experts' together."""
    model = run.model
    if model.num_experts:
        return run.local_experts * 2 * model.moe_ffn_hidden_size * model.hidden_size // run.sizes.expert_tensor
    return 2 * model.ffn_hidden_size * model.hidden_size // run.sizes.tensor


def _experts_backward(run: PlannedRun) -> int:
    """As an MLP's, for the rows of all experts, which are there in two orders."""
    inner = run.model.moe_ffn_hidden_size // run.sizes.expert_tensor
    numbers = run.routed_rows * (6 * inner + 2 * run.model.hidden_size)
    if not run.layout.gradient_accumulation_fusion or run.layout.transformer_impl == "local":
        numbers += _first_matrix(run)
    return numbers * run.layout.bytes_per_number
