"""Layer options on two tensor-parallel ranks, each beside its equation written out: norms, multipliers, activations."""

from dataclasses import replace

import pytest

from megatron_mixcpt.testing import run_distributed


def test_layer_options() -> None:
    run_distributed(check_layer_options, 2, cpu_emulation=True)


def check_layer_options() -> None:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(2)
    check_branch_end()
    check_branch_end_keeps_nothing_in_evaluation()
    check_layers_without_pre_norms()
    check_separate_norms()
    check_norm_over_heads()
    check_layer_norm_without_bias()
    check_parallel_layer()
    check_activations()
    check_xielu()


def config(engine=None, **options):
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.models.configure import configure_model
    from megatron_mixcpt.models.options import ModelOptions

    shape = {"num_layers": 2, "hidden_size": 24, "num_attention_heads": 6, "num_query_groups": 2, "ffn_hidden_size": 32}
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "qk_layernorm": True}
    norm = {"normalization": "RMSNorm", "add_bias_linear": False, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    configured = TransformerConfig(**shape | parallel | norm | (engine or {}))
    configure_model(configured, ModelOptions(**options))
    return configured


def check_branch_end() -> None:
    """x + 0.5 * norm(y + bias), and the weight is marked as one whose gradient is a sum over ranks."""
    import torch

    from megatron_mixcpt.models.layer_options.branches import BranchEnd

    end = BranchEnd(config(post_norms=True, residual_multiplier=0.5))
    torch.nn.init.normal_(end.norm.weight)
    x, y, bias = torch.randn(3, 2, 24), torch.randn(3, 2, 24), torch.randn(24)
    wide = y + bias
    expected = x + 0.5 * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * end.norm.weight
    for fused in (False, True):
        torch.testing.assert_close(end(True, fused)((y, bias), x, 0.0), expected)
    assert end.norm.weight.sequence_parallel
    multiplied = BranchEnd(config(residual_multiplier=0.5))
    assert not list(multiplied.parameters())
    torch.testing.assert_close(multiplied(True, False)((y, bias), x, 0.0), x + 0.5 * wide)


def check_branch_end_keeps_nothing_in_evaluation() -> None:
    """The engine enables gradients around it in evaluation too; in training its weight has one all the same."""
    import torch

    from megatron_mixcpt.models.layer_options.branches import BranchEnd

    end, x = BranchEnd(config(post_norms=True)), torch.randn(3, 2, 24)
    assert not end(False, False)((x.clone(), None), x, 0.0).requires_grad
    assert end(True, False)((x.clone(), None), x, 0.0).requires_grad


def check_layers_without_pre_norms() -> None:
    """Transformer Engine's linear classes hold norms, and are exchanged for those that do not."""
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TELayerNormColumnParallelLinear
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer.identity_op import IdentityOp

    from megatron_mixcpt.models.layer_options.branches import BranchEnd, with_branches
    from megatron_mixcpt.models.layer_specs import gpt_layer_spec
    from megatron_mixcpt.models.mlp_builder import submodules_of, with_submodules
    from megatron_mixcpt.models.norm import build_norm

    spec = gpt_layer_spec(config()).layer_specs[0]
    assert with_branches(spec, config()) is spec
    plain = spec.submodules
    fused = {"linear_fc1": TELayerNormColumnParallelLinear}
    mlp = with_submodules(plain.mlp, replace(submodules_of(plain.mlp), **fused))
    for layer, expected in ((replace(plain, mlp=mlp), TEColumnParallelLinear), (plain, ColumnParallelLinear)):
        given = replace(spec, submodules=layer)
        changed = with_branches(given, config(pre_norms=False, post_norms=True)).submodules
        assert submodules_of(changed.mlp).linear_fc1 is expected
        assert changed.input_layernorm is changed.pre_mlp_layernorm is IdentityOp
        assert changed.self_attn_bda.module is changed.mlp_bda.module is BranchEnd
    assert plain.input_layernorm is build_norm and plain.self_attn_bda is get_bias_dropout_add


def check_separate_norms() -> None:
    """A norm within a linear layer becomes one before it; layers without such a norm stay as they are."""
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelLinear,
        TELayerNormColumnParallelLinear,
        TENorm,
    )

    from megatron_mixcpt.models.layer_options.separate_norms import with_separate_norms
    from megatron_mixcpt.models.layer_specs import gpt_layer_spec
    from megatron_mixcpt.models.mlp_builder import submodules_of, with_submodules

    spec = gpt_layer_spec(config()).layer_specs[0]
    plain, attention = spec.submodules, spec.submodules.self_attention
    assert with_separate_norms(spec) == spec
    fused = replace(
        plain,
        self_attention=replace(
            attention, submodules=replace(attention.submodules, linear_qkv=TELayerNormColumnParallelLinear)
        ),
        mlp=with_submodules(plain.mlp, replace(submodules_of(plain.mlp), linear_fc1=TELayerNormColumnParallelLinear)),
    )
    changed = with_separate_norms(replace(spec, submodules=fused)).submodules
    assert changed.self_attention.submodules.linear_qkv is TEColumnParallelLinear
    assert submodules_of(changed.mlp).linear_fc1 is TEColumnParallelLinear
    assert changed.input_layernorm is changed.pre_mlp_layernorm is TENorm


def check_norm_over_heads() -> None:
    """Values and gradients of this rank's heads, beside OLMo 2's own norm of all heads on one rank."""
    import torch
    from megatron.core import parallel_state
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    from megatron_mixcpt.models.layer_options.norm_over_heads import NormOverHeads

    rank, group = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_group()
    torch.manual_seed(4)
    reference, whole = Olmo2RMSNorm(24, 1e-5), torch.randn(5, 2, 24, requires_grad=True)
    torch.nn.init.normal_(reference.weight)
    expected = reference(whole)
    expected.sin().sum().backward()

    norm = NormOverHeads(config=config(), hidden_size=4, of="query", eps=1e-5)
    norm.weight.data.copy_(reference.weight)
    part = whole.detach().unflatten(-1, (6, 4)).chunk(2, 2)[rank].clone().requires_grad_()
    values = norm(part)
    values.sin().sum().backward()
    # Sums of 24 numbers of about 1 in float32, in another order.
    torch.testing.assert_close(values, expected.unflatten(-1, (6, 4)).chunk(2, 2)[rank], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(part.grad, whole.grad.unflatten(-1, (6, 4)).chunk(2, 2)[rank], atol=1e-5, rtol=1e-5)
    torch.distributed.all_reduce(norm.weight.grad, group=group)  # as the engine does with q_layernorm and k_layernorm
    torch.testing.assert_close(norm.weight.grad, reference.weight.grad, atol=1e-5, rtol=1e-5)


def check_layer_norm_without_bias() -> None:
    import torch
    from transformers.models.cohere.modeling_cohere import CohereLayerNorm

    from megatron_mixcpt.models.norm import build_norm

    norm = build_norm(config=config({"normalization": "LayerNorm"}, norm_bias=False), hidden_size=24, eps=1e-5)
    reference, x = CohereLayerNorm(24, 1e-5), torch.randn(3, 2, 24)
    torch.nn.init.normal_(norm.weight)
    reference.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), reference(x), atol=1e-6, rtol=1e-5)


def check_parallel_layer() -> None:
    """x + attention(norm(x)) + mlp(norm(x)) of the layer's own parts; what it cannot recompute is refused."""
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.spec_utils import build_module

    from megatron_mixcpt.errors import ConfigError
    from megatron_mixcpt.models.layer_specs import gpt_layer_spec

    model_parallel_cuda_manual_seed(1)
    chosen, groups = config(parallel_layers=True), ProcessGroupCollection.use_mpu_process_groups()
    layer = build_module(gpt_layer_spec(chosen).layer_specs[0], config=chosen, pg_collection=groups)
    x = torch.randn(4, 2, 24)
    normed = layer.input_layernorm(x)
    expected = x + layer.self_attention(normed, attention_mask=None)[0] + layer.mlp(normed)[0]
    torch.testing.assert_close(layer(x, attention_mask=None, padding_mask=None)[0], expected)

    modules = {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    refused = config(modules, parallel_layers=True)
    with pytest.raises(ConfigError, match="--recompute-modules mlp: this model's attention and MLP share a norm"):
        build_module(gpt_layer_spec(refused).layer_specs[0], config=refused, pg_collection=groups)


def check_activations() -> None:
    """All that can be named, as transformers computes them; the engine's fused kernels are off."""
    import torch
    from transformers.activations import ACT2FN

    from megatron_mixcpt.models.layer_options.activations import ACTIVATIONS

    x = torch.linspace(-5, 5, 101)
    for name in ACTIVATIONS:
        engine = config(activation=name)
        torch.testing.assert_close(engine.activation_func(x), ACT2FN[name](x))
        assert not engine.bias_activation_fusion


def check_xielu() -> None:
    """Values, and gradients of the learned numbers over both ranks' columns, beside transformers' own."""
    import torch
    from megatron.core import parallel_state
    from transformers.activations import XIELUActivation

    from megatron_mixcpt.models.layer_options.xielu import XIELU

    torch.manual_seed(6)
    reference, whole = XIELUActivation(dtype=torch.float32), torch.randn(3, 2, 8)
    part = whole.chunk(2, -1)[parallel_state.get_tensor_model_parallel_rank()]
    activation = XIELU(config=config(activation="xielu"))
    assert activation.state_dict().keys() == reference.state_dict().keys()
    for name, number in activation.state_dict().items():
        torch.testing.assert_close(number, reference.state_dict()[name].reshape(1))
    torch.testing.assert_close(activation(part), reference(part))
    reference(whole).sin().sum().backward()
    activation(part).sin().sum().backward()
    torch.testing.assert_close(activation.alpha_p.grad, reference.alpha_p.grad)
    torch.testing.assert_close(activation.alpha_n.grad, reference.alpha_n.grad)
