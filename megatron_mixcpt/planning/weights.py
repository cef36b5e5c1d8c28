"""The weights of both models on a rank, what of them is trained, and what the optimizer holds of that."""

from megatron_mixcpt.planning.adapters import adapter_parameters
from megatron_mixcpt.planning.layers import LayerShape
from megatron_mixcpt.planning.layout import PlannedRun


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
    return vocabularies * vocabulary_columns(run) * run.model.hidden_size + (run.model.norm_size if last else 0)


def vocabulary_columns(run: PlannedRun) -> int:
    """Of one rank; the vocabulary is padded to a multiple of TP."""
    return -(-run.model.vocab_size // run.sizes.tensor)


def teacher_bytes(run: PlannedRun, stage: int) -> int:
    """The frozen weights, in the student's precision; offloaded, two layers' buffers and what is outside the layers.

    In 8 bits there is a copy of each layer's matrices beside them, or of one matrix at a time where they are offloaded.
    """
    layout, layers_of_stage = run.layout, run.layers_of(stage)
    if not layout.holds_teacher:
        return 0
    if layout.teacher_offload == "none":
        fp8_bytes = sum(_layer_matrices(run, layer) for layer in layers_of_stage)
        total = stage_parameters(run, stage) * layout.bytes_per_number
    else:
        fp8_bytes = max(first_matrix(run, layer) for layer in layers_of_stage)
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


def stage_adapters(run: PlannedRun, stage: int) -> int:
    """Parameters of all adapters on each rank of a stage."""
    return sum(adapter_parameters(run, layer) for layer in run.layers_of(stage))


def trained_parameters(run: PlannedRun, stage: int) -> int:
    """Those of a rank's parameters that have a gradient: all, or the adapters'."""
    return stage_adapters(run, stage) if run.layout.lora.is_given else stage_parameters(run, stage)


def owned_parameters(run: PlannedRun, stage: int) -> int:
    """Those of a rank's parameters whose optimizer state it holds: float32 moments, and of bfloat16 a float32 copy.

    Sharded, a share of the experts over the ranks that hold copies of them, and of the rest over those that hold it.
    """
    parameters = trained_parameters(run, stage)
    if not run.layout.use_distributed_optimizer:
        return parameters
    experts = 0 if run.layout.lora.is_given else sum(_layer_experts(run, layer) for layer in run.layers_of(stage))
    return (parameters - experts) // (run.sizes.data * run.sizes.context) + experts // run.sizes.expert_data


def first_matrix(run: PlannedRun, layer: LayerShape) -> int:
    """Parameters of the MLP's first layer on a rank, or of its experts' together."""
    model, halves = run.model, run.model.inner_products - 1
    if layer.expert:
        return run.local_experts * halves * model.moe_ffn_hidden_size * model.hidden_size // run.sizes.expert_tensor
    return halves * layer.inner * model.hidden_size // run.sizes.tensor
