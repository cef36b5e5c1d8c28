"""The modules that a GPT layer is built from: Transformer Engine's on GPUs that have it, ours elsewhere.

Ours are the engine's own linear layers with the attention and the norms of this package. Both choices name the same
tensors in a checkpoint: Transformer Engine fuses a norm into the linear layer after it, so the separate norms are saved
under the fused names (``sharded_state_dict_keys_map``), as the engine's own local layers are.
"""

from collections.abc import Sequence
from dataclasses import replace

from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.experimental_attention_variant_module_specs import get_linear_attention_pattern
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_with_transformer_engine_spec,
    get_mlp_module_spec_for_backend,
)
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.ssm.gated_delta_net import GatedDeltaNetSubmodules
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType, LayerType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import L2Norm, LayerNormBuilder
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    MlpBuilder,
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.attention import ScaledDotProductAttention
from megatron_mixcpt.models.biases import with_biases
from megatron_mixcpt.models.delta_net.gated_delta_net import GatedDeltaNet
from megatron_mixcpt.models.experts import GroupedExperts
from megatron_mixcpt.models.layer_options.branches import with_branches
from megatron_mixcpt.models.layer_options.latent_attention import FUSED_NORM_NAMES, latent_attention
from megatron_mixcpt.models.layer_options.norm_over_heads import with_norms_over_heads
from megatron_mixcpt.models.layer_options.parallel_layer import ParallelLayer
from megatron_mixcpt.models.layer_options.separate_norms import with_separate_norms
from megatron_mixcpt.models.layer_options.xielu import with_xielu
from megatron_mixcpt.models.mlp_builder import submodules_of, with_submodules
from megatron_mixcpt.models.norm import RMSNorm, build_norm
from megatron_mixcpt.models.options import options_of
from megatron_mixcpt.models.router import Router


class TorchSpecProvider(LocalSpecProvider):
    """The engine's local layers with scaled-dot-product attention and norms that allow sequence parallelism."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> LayerNormBuilder:
        """Builder of the norm that the config names, whatever the arguments say."""
        return build_norm

    def core_attention(self) -> type[ScaledDotProductAttention]:
        """Class of the core attention."""
        return ScaledDotProductAttention

    def grouped_mlp_modules(self, moe_use_grouped_gemm: bool) -> type[GroupedExperts]:
        """Class of a layer's experts, whatever the argument says."""
        return GroupedExperts


def gpt_layer_spec(
    config: TransformerConfig, vp_stage: int | None = None, pp_rank: int | None = None
) -> TransformerBlockSubmodules | ModuleSpec:
    """Layers of one pipeline stage: Transformer Engine's where it is configured and installed, else ours.

    Meant for ``GPTModelConfig.transformer_layer_spec``, which the engine calls with its model config and ``vp_stage``.
    A model config passes its attributes on to the ``TransformerConfig`` within, so that either can be given.

    Args:
        vp_stage: virtual pipeline stage; None without interleaving.
        pp_rank: pipeline stage; None = this rank's.

    Raises ConfigError for experts with biases, and what Transformer Engine's layers lack where they are configured.
    """
    config = getattr(config, "transformer", config)
    if HAVE_TE and config.transformer_impl == "transformer_engine":
        if lacking := lacking_in_transformer_engine(config):
            raise ConfigError(f"Transformer Engine's layers have no {lacking}: give --transformer-impl local")
        return _with_options(_transformer_engine_spec(config, vp_stage, pp_rank), config)
    provider = TorchSpecProvider()
    stage = TransformerBlockSubmodules(
        layer_specs=[_layer(config, provider, index) for index in _layers_of_stage(config, vp_stage, pp_rank)],
        layer_norm=provider.layer_norm(),
    )
    return _with_options(stage, config)


def _with_options(
    spec: TransformerBlockSubmodules | ModuleSpec, config: TransformerConfig
) -> TransformerBlockSubmodules | ModuleSpec:
    """What the options change in finished layers, whichever provider's modules these are of."""
    options = options_of(config)
    spec = with_branches(spec, config)
    if options.separate_norms:
        spec = with_separate_norms(spec)  # before linear layers are wrapped
    spec = with_xielu(with_norms_over_heads(spec, options), options)
    return with_biases(spec, options)


def lacking_in_transformer_engine(config: TransformerConfig) -> str | None:
    """The first part of a model that Transformer Engine's layers do not have, and ours do; None: they have all."""
    options = options_of(config)
    lacking = {
        "latent attention": config.multi_latent_attention,
        "gated delta net": bool(config.experimental_attention_variant),
        "soft cap of attention's scores": options.attention_softcap is not None,
        "attention and MLP side by side": options.parallel_layers,
        "LayerNorm without bias": not options.norm_bias,
        "queries that grow with their position": options.position_scale is not None,
        "biases in experts": options.mlp_bias and config.num_moe_experts is not None,
    }
    return next((name for name, is_needed in lacking.items() if is_needed), None)


def _layers_of_stage(config: TransformerConfig, vp_stage: int | None, pp_rank: int | None) -> Sequence[int]:
    """Numbers, from 0, of the layers that a stage holds, as the engine's ``get_gpt_decoder_block_spec`` takes them."""
    if config.pipeline_model_parallel_layout is not None:
        return config.pipeline_model_parallel_layout.get_layer_id_list(LayerType.decoder, vp_stage, pp_rank)
    first = get_transformer_layer_offset(config, vp_stage, pp_rank)
    return range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=pp_rank))


def _layer(config: TransformerConfig, provider: LocalSpecProvider, index: int) -> ModuleSpec:
    """The layer of number ``index``, from 0 over the whole model, of the provider's modules."""
    norm, has_experts, has_delta_net = provider.layer_norm(), _has_experts(config, index), _has_delta_net(config, index)
    is_parallel = options_of(config).parallel_layers
    submodules = TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=_delta_net(provider) if has_delta_net else _attention(config, provider),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=IdentityOp if is_parallel else norm,
        mlp=_experts(config, provider) if has_experts else get_mlp_module_spec_for_backend(backend=provider),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=_fused_names(config, has_experts, has_delta_net),
    )
    return ModuleSpec(module=ParallelLayer if is_parallel else TransformerLayer, submodules=submodules)


def _has_experts(config: TransformerConfig, index: int) -> bool:
    """Whether a layer has experts; ``moe_layer_freq`` is a period or a list of 0 and 1 for all layers."""
    if config.num_moe_experts is None:
        return False
    frequency = config.moe_layer_freq
    return bool(frequency[index]) if isinstance(frequency, list) else index % frequency == 0


def _has_delta_net(config: TransformerConfig, index: int) -> bool:
    """Whether a layer has a gated delta net in the place of attention."""
    return (
        config.experimental_attention_variant == "gated_delta_net" and get_linear_attention_pattern(config)[index] == 1
    )


def _delta_net(provider: LocalSpecProvider) -> ModuleSpec:
    """A gated delta net of the provider's linear layers, whose own norm is a plain one in every model."""
    return ModuleSpec(
        module=GatedDeltaNet,
        submodules=GatedDeltaNetSubmodules(
            in_proj=provider.column_parallel_linear(), out_norm=RMSNorm, out_proj=provider.row_parallel_linear()
        ),
    )


def _attention(config: TransformerConfig, provider: LocalSpecProvider) -> ModuleSpec:
    """Attention of the provider's modules; the engine's ``get_gpt_layer_local_submodules`` fixes its provider."""
    if config.multi_latent_attention:
        return latent_attention(provider)
    qk_norm = L2Norm if config.qk_l2_norm else provider.layer_norm() if config.qk_layernorm else None
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=provider.column_parallel_linear(),
            core_attention=provider.core_attention(),
            linear_proj=provider.row_parallel_linear(),
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )


def _experts(config: TransformerConfig, provider: LocalSpecProvider) -> MlpBuilder:
    """A router and experts in the place of an MLP."""
    mixture = get_moe_module_spec_for_backend(
        provider, num_experts=config.num_moe_experts, moe_grouped_gemm=config.moe_grouped_gemm
    )
    return _with_router(mixture)


def _fused_names(config: TransformerConfig, has_experts: bool, has_delta_net: bool) -> dict[str, str]:
    """Names of a layer's norms as Transformer Engine has them.

    The norms before a router and before latent attention stay separate there too.
    """
    projection = "in_proj" if has_delta_net else "linear_qkv"
    names = {"input_layernorm.": f"self_attention.{projection}.layer_norm_"}
    if config.multi_latent_attention:
        names = FUSED_NORM_NAMES
    return names if has_experts else {**names, "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}


def _with_router(mlp: MlpBuilder) -> MlpBuilder:
    """The builder of a layer's MLP; a mixture of experts gets the router of this package, a dense one is as before."""
    submodules = submodules_of(mlp)
    if not isinstance(submodules, MoESubmodules):
        return mlp
    return with_submodules(mlp, replace(submodules, router=Router))


def _transformer_engine_spec(
    config: TransformerConfig, vp_stage: int | None, pp_rank: int | None
) -> TransformerBlockSubmodules | ModuleSpec:
    """What the engine's GPT builder picks (``default_layer_spec`` in megatron/training/models/gpt.py)."""
    if config.num_moe_experts is not None:
        block = get_gpt_decoder_block_spec(
            config,
            use_transformer_engine=True,
            normalization=config.normalization,
            qk_l2_norm=config.qk_l2_norm,
            vp_stage=vp_stage,
            pp_rank=pp_rank,
        )
        for layer in block.layer_specs:
            layer.submodules.mlp = _with_router(layer.submodules.mlp)
        return block
    return get_gpt_layer_with_transformer_engine_spec(
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=config.multi_latent_attention,
        qk_l2_norm=config.qk_l2_norm,
        use_kitchen=config.use_kitchen,
        use_te_activation_func=config.use_te_activation_func,
        use_kitchen_attention=config.use_kitchen_attention,
        kitchen_attention_backend=config.kitchen_attention_backend,
        mla_down_proj_fusion=getattr(config, "mla_down_proj_fusion", False),
        use_grouped_gemm_for_dense_mlp=config.use_grouped_gemm_for_dense_mlp,
        use_te_op_fuser=config.use_transformer_engine_op_fuser,
    )
