"""A model's options on their way into the engine: before it builds the model, on its configuration, and after it has.

Everything else that the options decide is read from the configuration by the modules that the layer specs name.
"""

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_mixcpt.models.layer_options.activations import configure_activation
from megatron_mixcpt.models.layer_options.multipliers import multiply_embeddings
from megatron_mixcpt.models.layer_options.softmax_offset import mark_offsets
from megatron_mixcpt.models.options import ModelOptions, attach_options
from megatron_mixcpt.models.rotary import configure_rotation, replace_rotation


def configure_model(config: TransformerConfig, options: ModelOptions) -> None:
    """Put a model's options on the engine's configuration, in place, before the model is built from it."""
    attach_options(config, options)
    for name, value in options.engine_config.items():
        assert hasattr(config, name), f"the engine's configuration has no {name}"
        setattr(config, name, value)
    configure_activation(config, options)
    configure_rotation(config, options)


def complete_model(model: GPTModel) -> None:
    """Give a model that the engine has built, in place, what its options ask for; before its first forward pass."""
    replace_rotation(model)
    multiply_embeddings(model)
    mark_offsets(model)
