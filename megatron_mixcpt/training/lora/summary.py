"""The adapters of a run in a line, as it is printed before training."""

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.adapters.targets import adapted_modules
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan
from megatron_mixcpt.training.lora.run_settings import targets_of


def described_adapters(lora: LoRASettings, plan: ModelPlan) -> str:
    """Rank, scale, where they are, and how many weights are trained."""
    trained, total = (
        number_of_weights(lora, plan),
        sum(rule.num_parameters(plan.dims) for rule in plan.rules().values()),
    )
    dropout = f", dropout {lora.lora_dropout:g}" if lora.lora_dropout else ""
    beside = ", ".join(targets_of(plan, lora.targets))
    return (
        f"rank {lora.lora_rank}, scale {lora.scale:g}{dropout}, beside {beside}: {trained:,} weights to train, "
        f"{trained / total:.2%} of the model's {total:,}"
    )


def number_of_weights(lora: LoRASettings, plan: ModelPlan) -> int:
    """Numbers in all adapters of a model."""
    rules = plan.rules()
    shapes = (rules[f"{module}.weight"].engine_shape(plan.dims) for module in adapted_modules(rules, lora.targets))
    assert lora.lora_rank is not None
    return sum(lora.lora_rank * sum(shape) for shape in shapes)
