"""What a user's mistake prints: one line with the value, where it came from and the way out, before anything starts."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from megatron_mixcpt.errors import MixCPTError
from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_run import GLOBAL_BATCH_SIZE, flags, make_world
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer


def test_mistakes_are_one_clear_line(tmp_path: Path) -> None:
    run_distributed(check_refusals, 1, str(make_world(tmp_path)), cpu_emulation=True)


def check_refusals(root: str) -> None:
    from megatron_mixcpt.training.pretraining.arguments import parse_run

    world = Path(root)
    for argv, message in (*wrong_flags(world), *broken_folders(world)):
        try:
            parse_run(argv)
        except MixCPTError as error:
            assert re.search(message, str(error)), f"{message!r} is not in {error}"
            assert "\n" not in str(error), error
        else:
            raise AssertionError(f"{argv[-2:]} was accepted")
    check_length_of_run(world)
    check_world_size(world)


def check_length_of_run(world: Path) -> None:
    """Without --train-iters a run is --epochs passes over the mixture; with it, as many passes as it takes.

    --mixture-weights changes what each kind gets of them.
    """
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.training.pretraining.arguments import parse_run

    without = flags(world, iterations=None)
    by_kind = ["--epochs", "cpt=1,sft=3"]
    for argv, passes in (
        (without, [1, 1, 1]),
        ([*without, "--epochs", "3"], [3, 3, 3]),
        ([*without, *by_kind], [1, 3, 1]),
        ([*without, "--train-iters", "60"], [3, 3, 3]),
        ([*without, *by_kind, "--train-iters", "60"], [2, 6, 2]),
    ):
        run = parse_run(argv)
        destroy_global_vars()
        destroy_num_microbatches_calculator()
        assert [kind.epochs for kind in run.plan.datasets] == passes, (argv, run.plan)
        expected = 60 if "--train-iters" in argv else run.plan.num_sequences // GLOBAL_BATCH_SIZE
        assert run.args.train_iters == expected, (run.args.train_iters, expected)
    run = parse_run([*without, "--mixture-weights", "cpt=0.5,dpo=0.5"])
    destroy_global_vars()
    destroy_num_microbatches_calculator()
    cpt, dpo = run.plan.datasets
    assert (cpt.name, dpo.name) == ("cpt", "dpo") and abs(cpt.num_sequences - dpo.num_sequences) <= 1, run.plan


def wrong_flags(world: Path) -> list[tuple[list[str], str]]:
    """Good folders, wrong flags; and what the error says."""
    good = flags(world, iterations=1)
    packed = ["--transformer-impl", "transformer_engine", "--document-masking"]
    return [
        ([*good, "--hf-model", str(world / "nowhere")], r"nowhere is not a folder"),
        ([*good, "--mixture", str(world / "llama")], r"llama.*mixture\.json"),
        ([*good, "--num-layers", "5"], r"--num-layers 5 .*num_hidden_layers 4.* contradicts .*config\.json"),
        (
            [*good, "--untie-embeddings-and-output-weights"],
            r"--untie-embeddings-and-output-weights .*tie_word_embeddings",
        ),
        ([*good, "--teacher", str(world / "qwen2")], r"--teacher .*qwen2 is another model: .*add_qkv_bias"),
        ([*good, "--seq-length", "100000"], r"no kind has a sequence of 100000 tokens.*--seq-length"),
        ([*good, "--split", "0,1"], r"--split 0,1"),
        ([*good, "--epochs", "0"], r"--epochs: at least one kind must be above zero"),
        ([*good, "--epochs", "cpt=1,code=2"], r"--epochs cpt=1,code=2: expected kinds and numbers such as"),
        ([*good, "--epochs", "sft=-1"], r"--epochs sft=-1.0: expected a number of zero or more"),
        ([*good, "--mixture-weights", "cpt"], r"--mixture-weights cpt: expected kinds and numbers such as"),
        ([*good, "--alpha", "2"], "--alpha 2.0: must be between 0 and 1"),
        ([*good, "--distillation", "magic"], r"--distillation.*'magic'"),
        ([*good, "--data-path", "elsewhere"], r"--data-path is not used here \(--mixture names the data\); remove it"),
        ([*good, "--full-validation"], r"--full-validation is not used here \(held-out samples"),
        ([*good, "--split", "99,1,0"], r"--split 99,1,0 holds out less than one sequence of 64 tokens of every"),
        (
            [*good, "--split", "80,20", "--eval-micro-batch-size", "2"],
            r"--eval-micro-batch-size is not used where complete",
        ),
        ([*good, "--reset-attention-mask"], r"--reset-attention-mask is not used here.*--document-masking"),
        ([*good, *packed], r"--transformer-impl transformer_engine: Transformer Engine cannot be imported here"),
        ([*good, "--use-megatron-fsdp"], r"--use-megatron-fsdp is not supported \(FSDP .*--use-distributed-optimizer"),
        ([*good, "--teacher-fp8", "--transformer-impl", "local"], r"--teacher-fp8 needs Transformer Engine"),
        ([*good, "--no-such-flag"], r"unrecognized arguments: --no-such-flag"),
        ([*good, "--lr-warmup-iters", "1", "--lr-warmup-fraction", "0.5"], r"iters decide the same: give one"),
        ([*good, "--weight-decay-incr-style", "linear"], r"the engine refuses these flags"),
    ]


def broken_folders(world: Path) -> list[tuple[list[str], str]]:
    """Folders that cannot be used; and what the error says."""
    cases = []

    def broken(name: str, message: str) -> Path:
        copy = world / name
        shutil.copytree(world / "llama", copy)
        cases.append(([*flags(world, iterations=1), "--hf-model", str(copy)], message))
        return copy

    folder = broken("other-architecture", r"architecture \['GPT2LMHeadModel'\] is not supported")
    rewrite(folder / "config.json", architectures=["GPT2LMHeadModel"])
    folder = broken("other-rope", r"config\.json: factor 0 cannot be trained: expected a positive number")
    config = json.loads((folder / "config.json").read_text())
    rewrite(folder / "config.json", rope_parameters={**config["rope_parameters"], "factor": 0})
    folder = broken("truncated", r"model\.safetensors is damaged: \d+ bytes instead of \d+")
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    folder = broken("other-tokenizer", r"its tokenizer .* is not the one .*preprocess again with --tokenizer")
    save_tiny_tokenizer(folder, vocab_size=300)
    folder = broken("missing-shard", r"model-00001-of-00002\.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return cases


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def check_world_size(world: Path) -> None:
    """Three ranks cannot hold complete copies of a model of two."""
    from megatron_mixcpt.training.pretraining.arguments import parse_run

    os.environ["WORLD_SIZE"] = "3"
    with pytest.raises(MixCPTError, match="3 ranks cannot be divided into complete copies of the model of 2"):
        parse_run([*flags(world, iterations=1), "--pipeline-model-parallel-size", "2"])
    check_documents_of_a_shared_row()


def check_documents_of_a_shared_row() -> None:
    """Transformer Engine's attention would cross their boundaries, and takes one row at a time; ours does not."""
    from megatron_mixcpt.training.engine.arguments import check_packed_rows

    shared = {"context_parallel_size": 2, "micro_batch_size": 1}
    for what in ("--document-masking", "SFT and DPO, whose rows hold several documents,"):
        check_packed_rows(shared | {"transformer_impl": "local"}, what)
        with pytest.raises(MixCPTError, match=f"{what} with --context-parallel-size 2: .*add --transformer-impl local"):
            check_packed_rows(shared | {"transformer_impl": "transformer_engine"}, what)
    with pytest.raises(MixCPTError, match="--micro-batch-size 2: Transformer Engine takes"):
        check_packed_rows({"micro_batch_size": 2, "transformer_impl": "transformer_engine"}, "--document-masking")
