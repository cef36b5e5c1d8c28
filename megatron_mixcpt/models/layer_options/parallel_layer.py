"""A layer whose attention and MLP stand side by side: Command-R (transformers' CohereDecoderLayer).

x + attention(norm(x)) + mlp(norm(x))
"""

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from megatron_mixcpt.errors import ConfigError


class ParallelLayer(TransformerLayer):
    """The engine's layer with one norm, ``input_layernorm``, which both branches read.

    Raises ConfigError where a part of the layer that the engine knows in sequence only is to be recomputed.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        selective = self.config.recompute_granularity == "selective"
        if selective and (alone := {"mlp", "layernorm"} & set(self.config.recompute_modules or ())):
            raise ConfigError(
                f"--recompute-modules {' '.join(sorted(alone))}: this model's attention and MLP share a norm; give "
                "--recompute-modules core_attn, or --recompute-granularity full"
            )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments as in the base class, of which cross attention's are not used: [s, b, h] -> [s, b, h], None."""
        normed = self.input_layernorm(hidden_states)
        padding_mask = named.pop("padding_mask", None)
        for unused in ("context", "context_mask"):
            assert named.pop(unused, None) is None, "there is no cross attention"
        residual = hidden_states.float() if self.config.fp32_residual_connection else hidden_states
        branches = (
            (self.self_attn_bda, self.self_attention(normed, attention_mask=attention_mask, **named)),
            (self.mlp_bda, self.mlp(normed, padding_mask=padding_mask)),
        )
        for join, output in branches:
            residual = join(self.training, self.config.bias_dropout_fusion)(output, residual, self.hidden_dropout)
        return make_viewless_tensor(residual, requires_grad=residual.requires_grad, keep_graph=True), None
