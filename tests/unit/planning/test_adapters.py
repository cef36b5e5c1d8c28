"""Adapters in the plan, against sums done by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.objective import Objective
from megatron_mixcpt.planning.activations import edge_bytes, expert_bytes, hidden_bytes, layer_bytes
from megatron_mixcpt.planning.adapters import adapter_bytes, adapter_parameters, num_adapter_parameters
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.memory import plan_memory
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape, model_shape
from megatron_mixcpt.planning.tool import report

LLAMA = PRESETS["llama-3-8b"]
# Hidden size 8, MLP 16, 4 heads in 2 groups of 2 channels, 10 tokens in the vocabulary.
SMALL = ModelShape(4, 8, 16, 4, 2, 10, 2, 2048)
EXPERTS = dataclasses.replace(SMALL, num_experts=4, moe_ffn_hidden_size=6, moe_router_topk=2)
RANK = LoRASettings(lora_rank=4)
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def run_of(model: ModelShape, lora: LoRASettings = RANK, **layout) -> PlannedRun:
    return PlannedRun.of(model, Layout(lora=lora, **layout))


def test_adapters_of_llama_3_8b() -> None:
    """Rank 16. Queries of 32 x 128, keys and values of 8 x 128 each: 6,144 rows; gate and up: 28,672."""
    lora = LoRASettings(lora_rank=16)
    whole = 16 * ((4096 + 6144) + (4096 + 4096) + (4096 + 28672) + (14336 + 4096))
    run = run_of(LLAMA, lora)
    assert whole == 1_114_112
    assert [adapter_parameters(run, layer) for layer in LLAMA.layers] == [whole] * 32
    assert num_adapter_parameters(run) == 32 * whole == 35_651_584
    # TP 2: column-parallel layers divide B's rows, row-parallel ones A's columns.
    half = 16 * ((4096 + 3072) + (2048 + 4096) + (4096 + 14336) + (7168 + 4096))
    two = run_of(LLAMA, lora, tensor_model_parallel_size=2)
    assert half == 688_128 and adapter_parameters(two, LLAMA.layers[0]) == half
    assert num_adapter_parameters(two) == 35_651_584
    attention = LoRASettings(lora_rank=16, lora_target_modules="linear_qkv,linear_proj")
    assert adapter_parameters(run_of(LLAMA, attention), LLAMA.layers[0]) == 16 * (4096 + 6144 + 4096 + 4096)


def test_a_folder_counts_as_its_sizes_do(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192},
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = model_shape(str(tmp_path))
    assert folder.layers == LLAMA.layers
    assert num_adapter_parameters(run_of(folder, LoRASettings(lora_rank=16))) == 35_651_584


def test_routed_experts_have_none_and_shared_ones_have(tmp_path: Path) -> None:
    assert [linear.name for linear in EXPERTS.layers[0].linears] == ["linear_qkv", "linear_proj"]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}
    config = {"architectures": ["Qwen2MoeForCausalLM"], **sizes, **shared, "num_key_value_heads": 2}
    rest = {"num_experts_per_tok": 2, "vocab_size": 100, "rms_norm_eps": 1e-6, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config | rest))
    layer = model_shape(str(tmp_path)).layers[0]
    assert [tuple(linear) for linear in layer.linears] == [
        ("linear_qkv", 64 + 2 * 32, 64),
        ("linear_proj", 64, 64),
        ("linear_fc1", 2 * 48, 64),
        ("linear_fc2", 64, 48),
    ]


def test_the_model_is_there_once_and_adapters_alone_are_trained() -> None:
    layout = Layout(num_gpus=2, bf16=True, use_distributed_optimizer=True, lora=RANK)
    (stage,) = plan_memory(SMALL, layout)
    adapters = 4 * 4 * ((8 + 16) + (8 + 8) + (8 + 32) + (16 + 8))
    assert (stage.student, stage.teacher) == (2 * (SMALL.num_parameters + adapters), 0)
    assert (stage.gradients, stage.optimizer) == (4 * adapters, 12 * adapters // 2)
    (separate,) = plan_memory(SMALL, dataclasses.replace(layout, teacher="another"))
    assert separate.teacher == 2 * SMALL.num_parameters
    full = Layout(num_gpus=2, bf16=True, use_distributed_optimizer=True)
    assert plan_memory(SMALL, dataclasses.replace(full, teacher="another")) == plan_memory(SMALL, full)


def test_frozen_layers_save_less_and_adapters_their_products() -> None:
    """2,048 tokens in bfloat16: 8 columns of hidden states, 16 of the MLP; rank 4, so 4 columns for each product."""

    def saved(targets: str, dropout: float = 0.0) -> int:
        lora = LoRASettings(lora_rank=4, lora_target_modules=targets, lora_dropout=dropout)
        return layer_bytes(run_of(SMALL, lora, bf16=True), SMALL.layers[0]) // 2048

    trained = layer_bytes(PlannedRun.of(SMALL, Layout(bf16=True)), SMALL.layers[0]) // 2048
    every = "linear_qkv,linear_proj,linear_fc1,linear_fc2"
    assert saved(every) == trained + 4 * 2 * 4
    # Neither norm's result, nor the product between the MLP's layers; what attention returns it saves itself.
    assert saved("linear_proj") == trained - 2 * (8 + 8 + 16) + 2 * 4
    # With dropout a byte for each input, and one input twice: attention's own, and what is left of it.
    assert saved(every, 0.1) == saved(every) + (8 + 8 + 8 + 16) + 2 * 8


def test_sequence_parallelism_divides_the_products_beside_row_parallel_layers() -> None:
    sizes = {"bf16": True, "tensor_model_parallel_size": 2}
    layer = SMALL.layers[0]
    assert adapter_bytes(run_of(SMALL, **sizes), layer) == 2 * 2048 * 4 * 4
    assert adapter_bytes(run_of(SMALL, **sizes, sequence_parallel=True), layer) == 2 * 2048 * 4 * (2 + 2 / 2)
    recomputed = {"recompute_granularity": "selective", "recompute_modules": ("mlp",)}
    assert adapter_bytes(run_of(SMALL, **sizes, **recomputed), layer) == 2 * 2048 * 4 * 2


def test_a_frozen_norm_keeps_no_quotient_and_a_frozen_expert_no_input() -> None:
    local, engine = (run_of(SMALL, transformer_impl=name) for name in ("local", "transformer_engine"))
    assert edge_bytes(local, first=False, last=True) == edge_bytes(engine, first=False, last=True)
    trained, frozen = PlannedRun.of(EXPERTS, Layout(bf16=True)), run_of(EXPERTS, bf16=True)
    assert expert_bytes(trained) - expert_bytes(frozen) == 4096 * 2 * (8 + 6)


def test_the_output_weight_has_no_gradient() -> None:
    base = Layout(bf16=True, loss_chunk_tokens=512, seq_length=4096)
    (full,), (lora,) = (plan_memory(LLAMA, dataclasses.replace(base, lora=lora)) for lora in (LoRASettings(), RANK))
    assert full.logits - lora.logits == 128256 * 4096 * (4 + 2)
    chunked, whole = (run_of(LLAMA, loss_chunk_tokens=tokens) for tokens in (512, 0))
    hidden = edge_bytes(chunked, first=False, last=True) - edge_bytes(whole, first=False, last=True)
    assert hidden == hidden_bytes(whole)  # their gradient, ready when the loss is


@pytest.mark.parametrize("gpu_memory", [80, 40])
def test_llama_3_8b_trains_on_one_gpu(gpu_memory: int) -> None:
    layout = Layout(num_gpus=1, bf16=True, seq_length=4096, loss_chunk_tokens=2048, **FULL)
    full = report(LLAMA, layout, gpu_memory=gpu_memory, reserve=6)
    assert "does not fit" in full
    lora = dataclasses.replace(layout, lora=LoRASettings(lora_rank=16))
    lines = report(LLAMA, lora, gpu_memory=gpu_memory, reserve=6).splitlines()
    assert lines[0].startswith("8.03 billion parameters, trained 35.65 million in adapters of rank 16, bfloat16")
    assert lines[-1].startswith("fits: stage 0: 17.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_offload": "cpu"}, "--teacher-offload cpu with --lora-rank: the teacher is"),
        ({"teacher_fp8": True}, "--teacher-fp8 with --lora-rank: the teacher is"),
        ({"objective": Objective(distillation="l2")}, "--distillation l2 cannot be used with --lora-rank"),
        ({"lora": LoRASettings(lora_adapter="folder")}, "--lora-adapter folder: give what its adapter_config.json"),
    ],
)
def test_what_the_trainer_refuses_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Layout(**{"lora": RANK} | changes)


def test_a_separate_teacher_may_be_offloaded() -> None:
    offloaded = Layout(lora=RANK, teacher="another", teacher_offload="cpu")
    (stage,), (beside,) = (plan_memory(SMALL, layout) for layout in (offloaded, Layout(lora=RANK, teacher="another")))
    assert 0 < stage.teacher < beside.teacher


def test_a_module_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="linear_q_proj: the model has no such module .* choose from linear_qkv"):
        run_of(SMALL, LoRASettings(lora_rank=4, lora_target_modules="linear_q_proj"))
