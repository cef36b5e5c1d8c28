"""Biases of attention and of MLPs: logits and every gradient beside transformers."""

from pathlib import Path

from megatron_mixcpt.testing import run_distributed


def test_biases(tmp_path: Path) -> None:
    run_distributed(check_biases, 1, str(tmp_path), cpu_emulation=True)


def check_biases(folder: str) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    for is_fused in (False, True):
        check_logits_and_gradients(Path(folder), is_fused)
    check_other_layers_keep_theirs()
    check_experts_are_as_they_were()


def check_logits_and_gradients(folder: Path, is_fused: bool) -> None:
    """Of a Llama with both biases, in float32, with the engine's fused kernels that take biases and without them."""
    import torch

    from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
    from megatron_mixcpt.inference.engine_model import build_engine_model, load_on_this_rank, transformer_config
    from tests.unit.conversion import tiny_hf

    tokens = torch.arange(2 * 16).view(2, 16) * 7 % 259
    reference = tiny_hf.build("llama_biases")
    reference.save_pretrained(folder)
    expected = reference(tokens).logits
    expected.sin().sum().backward()

    hf_model = read_model_folder(folder)
    fused = {"bias_activation_fusion": is_fused, "bias_dropout_fusion": is_fused}
    model = build_engine_model(hf_model, transformer_config(hf_model, **fused))
    load_on_this_rank(model, hf_model)
    logits = model(tokens, torch.arange(16).expand(2, 16), None)
    # Both sides sum some fifty products of numbers of about 1 in float32, in another order.
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    logits.sin().sum().backward()
    check_gradients(model, hf_model, {name: parameter.grad for name, parameter in reference.named_parameters()})


def check_gradients(model, hf_model, expected: dict) -> None:
    """By the rules that weights are read with; 7 of each layer's 16 tensors of transformers are biases."""
    import torch

    from megatron_mixcpt.conversion.load import checkpoint_name

    rules, compared = hf_model.rules(), set()
    layers = [layer.layer_number for layer in model.decoder.layers]
    for name, parameter in model.named_parameters():
        rule = rules[checkpoint_name(name, layers, rules)]
        for hf_name, gradient in rule.take_apart(parameter.grad, hf_model.dims).items():
            torch.testing.assert_close(gradient, expected[hf_name], atol=2e-4, rtol=1e-4, msg=hf_name)
            compared.add(hf_name)
    assert compared == expected.keys()
    biases = {name: expected[name].abs().max() for name in expected if name.endswith(".bias")}
    assert len(biases) == 7 * hf_model.engine_arguments["num_layers"]
    # A key's bias adds the same to all scores of a query but for the rotation: its gradient is small, not zero.
    assert all(largest > 1e-2 for name, largest in biases.items() if "k_proj" not in name), biases


def check_other_layers_keep_theirs() -> None:
    """A layer without either option is the same object, and the given layer is not changed by a copy with biases."""
    from megatron_mixcpt.models.biases import with_biases
    from megatron_mixcpt.models.layer_specs import gpt_layer_spec
    from megatron_mixcpt.models.options import ModelOptions
    from tests.unit.models.test_layer_specs import config

    layer = gpt_layer_spec(config(transformer_impl="local")).layer_specs[0]
    assert with_biases(layer, ModelOptions()) is layer
    projection, mlp = layer.submodules.self_attention.submodules.linear_proj, layer.submodules.mlp
    changed = with_biases(layer, ModelOptions(attention_output_bias=True)).submodules
    assert changed.mlp is mlp and changed.self_attention.submodules.linear_proj is not projection
    changed = with_biases(layer, ModelOptions(mlp_bias=True)).submodules
    assert changed.self_attention is layer.submodules.self_attention and layer.submodules.mlp is mlp
    assert layer.submodules.self_attention.submodules.linear_proj is projection


def check_experts_are_as_they_were() -> None:
    """They read the options themselves; Transformer Engine's do not, and are refused."""
    from megatron_mixcpt.models.biases import with_biases
    from megatron_mixcpt.models.layer_specs import gpt_layer_spec, lacking_in_transformer_engine
    from megatron_mixcpt.models.options import ModelOptions, attach_options
    from tests.unit.models.test_layer_specs import config

    mixture = config(transformer_impl="local", num_moe_experts=4, moe_ffn_hidden_size=16)
    options = ModelOptions(mlp_bias=True)
    attach_options(mixture, options)
    layer = gpt_layer_spec(mixture).layer_specs[0]
    assert with_biases(layer, options).submodules.mlp is layer.submodules.mlp
    assert lacking_in_transformer_engine(mixture) == "biases in experts"
