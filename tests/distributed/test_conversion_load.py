"""Hugging Face folders in the engine and back, at real tensor and pipeline layouts, against transformers.

One run of ranks per layout takes every architecture through: weights read straight into the model, a converted release
read by the engine's own ``load_checkpoint``, the engine's own ``save_checkpoint``, and the export of what it saved.
Logits are compared within 1e-5: both sides compute in float32 on values of about 1, in another order of sums. What is
exported from the engine's checkpoint is compared bit for bit.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.testing import run_distributed
from tests.unit.conversion import tiny_hf

TOKENS = torch.arange(2 * 64).view(2, 64) * 7 % 259
ONE_EACH = ("llama3_tied", "llama_biases", "mistral", "qwen2", "qwen3", "smollm3_tied", "phi3", "mixtral", "qwen3_moe")
# Layout -> sizes of the tensor-, pipeline- and expert-parallel groups, and the models that go through it.
LAYOUTS = {
    "single": ((1, 1, 1), tuple(tiny_hf.CONFIGS)),
    "TP2": ((2, 1, 1), tuple(tiny_hf.CONFIGS)),
    "PP2": ((1, 2, 1), tuple(tiny_hf.CONFIGS)),
    "TP2xPP2": ((2, 2, 1), ONE_EACH),
    "EP2": ((1, 1, 2), tiny_hf.MIXTURES_OF_EXPERTS),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per architecture: ``hf`` (float32), ``release`` (converted) and ``expected.pt`` (logits of transformers)."""
    root = tmp_path_factory.mktemp("models")
    for name in tiny_hf.CONFIGS:
        model = tiny_hf.build(name)
        model.save_pretrained(root / name / "hf", max_shard_size="50KB")
        convert_from_hf(root / name / "hf", root / name / "release")
        with torch.no_grad():
            torch.save(model(TOKENS).logits, root / name / "expected.pt")
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_architecture_at(layout: str, models: Path, tmp_path: Path) -> None:
    there_and_back(check_models, layout, models, tmp_path)


def there_and_back(check: Callable[..., None], layout: str, models: Path, folder: Path, timeout_s: int = 240) -> None:
    """Run ``check`` on the layout's ranks, which save each of its models, and compare the exports bit for bit."""
    (tp_size, pp_size, ep_size), names = LAYOUTS[layout]
    arguments = (layout, str(models), str(folder))
    run_distributed(check, tp_size * pp_size * ep_size, *arguments, cpu_emulation=True, timeout_s=timeout_s)
    for name in names:
        copy_hf_metadata(models / name / "hf", folder / name)
        convert_to_hf(folder / name, folder / name / "exported")
        expected_tensors = read_all(models / name / "hf")
        exported = read_all(folder / name / "exported")
        assert exported.keys() == expected_tensors.keys()
        assert all(torch.equal(exported[key], expected_tensors[key]) for key in exported), name


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, by the safetensors library."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def check_models(layout: str, models: str, save_root: str) -> None:
    """On each rank, for each model: logits of direct and of converted weights; then save as the engine saves."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    (tp_size, pp_size, ep_size), names = LAYOUTS[layout]
    parallel_state.initialize_model_parallel(tp_size, pp_size, expert_model_parallel_size=ep_size)
    init_num_microbatches_calculator(0, None, ep_size, micro_batch_size=1, data_parallel_size=ep_size)
    model_parallel_cuda_manual_seed(1)
    for name in names:
        check_model(Path(models) / name, Path(save_root) / name)


def check_model(folder: Path, save_dir: Path) -> None:
    from megatron.core import parallel_state
    from megatron.training.checkpointing import load_checkpoint, save_checkpoint

    from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
    from megatron_mixcpt.conversion.load import ExpertParallel, load_hf_weights
    from megatron_mixcpt.inference.engine_model import build_engine_model, transformer_config

    hf_model = read_model_folder(folder / "hf")
    model = build_engine_model(hf_model, transformer_config(hf_model)).eval()
    expected_logits = torch.load(folder / "expected.pt")

    forget(model)
    load_hf_weights(
        model,
        hf_model,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        experts=ExpertParallel(
            parallel_state.get_expert_model_parallel_rank(),
            parallel_state.get_expert_model_parallel_world_size(),
            parallel_state.get_expert_tensor_parallel_rank(),
            parallel_state.get_expert_tensor_parallel_world_size(),
        ),
    )
    assert hf_model.tensors.bytes_read <= sum(parameter.nbytes for parameter in model.parameters())
    compare(model, expected_logits)

    forget(model)
    set_engine_arguments(hf_model.engine_arguments, load=folder / "release", save=save_dir)
    iteration, _ = load_checkpoint([model], None, None)
    assert iteration == 0
    compare(model, expected_logits)
    save_checkpoint(7, [model], None, None, 0)


def forget(model: torch.nn.Module) -> None:
    """Make every parameter nan, so that one left unfilled shows."""
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))


def compare(model: torch.nn.Module, expected_logits: torch.Tensor) -> None:
    """The last pipeline stage's logits, without the vocabulary's padding, equal the expected ones."""
    from megatron_mixcpt.inference.engine_model import forward_through_stages

    logits = forward_through_stages(model, TOKENS)
    if logits is not None:
        assert expected_logits.abs().max() > 0.5
        torch.testing.assert_close(logits[..., : expected_logits.shape[-1]], expected_logits, atol=1e-5, rtol=1e-5)
        assert not logits[..., expected_logits.shape[-1] :].any()  # padding rows of the vocabulary are zero


def set_engine_arguments(engine_arguments: dict, load: Path, save: Path) -> None:
    """Arguments as the engine's programs have them, for its checkpoint functions."""
    from megatron.core import parallel_state
    from megatron.training import global_vars
    from megatron.training.arguments import parse_args, validate_args

    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    pp_size = parallel_state.get_pipeline_model_parallel_world_size()
    flags = (
        f"--load {load} --save {save} --tensor-model-parallel-size {tp_size} --pipeline-model-parallel-size {pp_size}"
    )
    flags += f" --expert-model-parallel-size {parallel_state.get_expert_model_parallel_world_size()}"
    run = "--micro-batch-size 1 --seq-length 64 --train-iters 1 --lr 1e-4 --save-interval 1 --transformer-impl local"
    sys.argv = ["test", *flags.split(), *run.split()]
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    args = parse_args()
    vars(args).update(engine_arguments)
    validate_args(args)
    args.padded_vocab_size = -(-args.vocab_size // tp_size) * tp_size
    global_vars.set_args(args)
