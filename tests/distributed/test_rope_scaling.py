"""A context is lengthened: the student alone is scaled, what is saved and exported is the model that was trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_mixcpt.conversion.convert import convert_to_hf
from megatron_mixcpt.testing import run_distributed
from tests.distributed.dense_iteration import expected_first_iteration
from tests.distributed.tiny_run import SEQ_LENGTH, flags, make_world, train

YARN = {"rope_type": "yarn", "factor": 2.0}
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
TOKENS = torch.arange(2 * SEQ_LENGTH).view(2, -1) * 7 % 385


def rewrite(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_lengthened_context(tmp_path: Path) -> None:
    world, save = make_world(tmp_path / "world", ["qwen2"]), tmp_path / "save"
    for name in ("qwen2", "qwen2-teacher"):
        rewrite(world / name, max_position_embeddings=SEQ_LENGTH // 2)
    # By hand, for the reference: the student scaled, the teacher not.
    shutil.copytree(world / "qwen2-teacher", world / "scaled-teacher")
    shutil.copytree(world / "qwen2", world / "scaled")
    scaled = {**YARN, "rope_theta": 1e6, "original_max_position_embeddings": SEQ_LENGTH // 2}
    rewrite(world / "scaled", max_position_embeddings=SEQ_LENGTH, rope_parameters=scaled)

    command = [*flags(world, "qwen2", iterations=2), *TP2, "--save", str(save), "--save-interval", "1"]
    curves = train(2, [*command, "--rope-scaling", json.dumps(YARN)], tmp_path / "log")
    expected = expected_first_iteration(world, "scaled")
    for key in ("ntp loss", "lssd loss", "grad-norm"):
        assert curves[key][0] == pytest.approx(expected[key], rel=2e-4), key

    convert_to_hf(save, tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["rope_parameters"] == scaled and config["max_position_embeddings"] == SEQ_LENGTH
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.save(model(TOKENS).logits, tmp_path / "logits.pt")
    run_distributed(check_checkpoint, 2, str(save), str(tmp_path / "logits.pt"), command, cpu_emulation=True)


def check_checkpoint(save: str, expected: str, command: list[str]) -> None:
    """The checkpoint as scoring reads it, against the exported model; then a run that resumes without the scaling."""
    from megatron.training.global_vars import unset_global_variables

    from megatron_mixcpt.errors import ConfigError
    from megatron_mixcpt.inference.engine_model import forward_through_stages
    from megatron_mixcpt.inference.model_source import ModelSource
    from megatron_mixcpt.inference.parallel_groups import start_ranks
    from megatron_mixcpt.training.pretraining.arguments import parse_run

    for more, message in (
        ([], "longer than the model's 32 positions"),
        (["--max-position-embeddings", "64"], "is of a run with --rope-scaling .*yarn.*, this one has None"),
        (["--rope-scaling", '{"rope_type": "yarn", "factor": 3.0}'], '"factor": 2.0.*, this one has .*"factor": 3.0'),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_run([*command, *more])
        unset_global_variables()
    start_ranks(2, 1)
    logits = forward_through_stages(ModelSource.open(load=Path(save)).build(torch.float32), TOKENS)
    assert logits is not None
    rank, width = torch.distributed.get_rank(), logits.shape[-1]
    wanted = torch.load(expected)[..., rank * width : (rank + 1) * width]
    # Float32 on values of a few units, in another order of sums.
    torch.testing.assert_close(logits[..., : wanted.shape[-1]], wanted, atol=2e-5, rtol=1e-5)
