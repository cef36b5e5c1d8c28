"""SFT and DPO: curves equal a dense loop with transformers, at every layout; packing and resuming change nothing."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from megatron_mixcpt.testing import run_distributed
from tests.distributed.dense_alignment import (
    BETA,
    LEARNING_RATE,
    NUM_SAMPLES,
    expected_dpo,
    expected_sft,
    make_samples,
)
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_run import curves
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

NUM_ITERATIONS = 3
SEQ_LENGTH = {"sft": 160, "dpo": 256}
TP2_PP2 = [*("--tensor-model-parallel-size", "2", "--sequence-parallel"), *("--pipeline-model-parallel-size", "2")]
INTERLEAVED = ["--pipeline-model-parallel-size", "2", "--num-layers-per-virtual-pipeline-stage", "1"]
DP2 = ["--use-distributed-optimizer"]
CP2 = ["--context-parallel-size", "2"]
CP2_TP2 = [*CP2, "--tensor-model-parallel-size", "2", "--sequence-parallel"]
# Options of DPO's loss: as the dense loop names them, and as flags.
IPO = {"ipo": True}
SMOOTHED = {"label_smoothing": 0.1}
WITH_SFT = {"label_smoothing": 0.1, "sft_coefficient": 0.5}
LOSS_FLAGS = {
    "ipo": lambda _: ("--loss", "ipo"),
    "label_smoothing": lambda value: ("--label-smoothing", str(value)),
    "sft_coefficient": lambda value: ("--sft-coefficient", str(value)),
}


def make_world(root: Path) -> Path:
    """Fill ``root`` with a model, ``llama``, and the samples of both stages; returns it."""
    build_model("llama", 0).save_pretrained(root / "llama")
    save_tiny_tokenizer(root / "llama", vocab_size=VOCAB_SIZE)
    make_samples(root)
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def dense(world: Path) -> Callable[..., dict[str, list[float]]]:
    """The curves of a stage as transformers has them, by its name and the options of its loss."""

    @cache
    def expected(stage: str, **options: float) -> dict[str, list[float]]:
        curves = {"sft": expected_sft, "dpo": expected_dpo}[stage]
        return curves(world / "llama", world / f"{stage}.jsonl", NUM_ITERATIONS, **options)

    return expected


def flags(world: Path, stage: str, kind: str = "llama") -> list[str]:
    """Flags that every run of a stage shares: constant learning rate, all samples in each batch."""
    return [
        *("--hf-model", str(world / kind), f"--{stage}", str(world / f"{stage}.jsonl")),
        *("--chat-template", "zephyr", "--seq-length", str(SEQ_LENGTH[stage])),
        *("--global-batch-size", str(NUM_SAMPLES), "--epochs", str(NUM_ITERATIONS)),
        *("--lr", str(LEARNING_RATE), "--lr-decay-style", "constant", "--lr-warmup-fraction", "0"),
        *("--num-workers", "0", *(("--beta", str(BETA)) if stage == "dpo" else ())),
    ]


def train(world_size: int, stage: str, argv: list[str], log_dir: Path) -> dict[str, list[float]]:
    """Run a trainer; returns what TensorBoard shows."""
    argv = [*argv, "--tensorboard-dir", str(log_dir)]
    run_distributed(train_rank, world_size, stage, argv, cpu_emulation=True, timeout_s=240)
    return curves(log_dir)


def train_rank(stage: str, argv: list[str]) -> None:
    """On each rank: what tools/train_sft.py and tools/train_dpo.py do."""
    from megatron_mixcpt.training.alignment import dpo, sft

    {"sft": sft, "dpo": dpo}[stage].main.__wrapped__(argv)


# Float32 both, other orders of summation; Adam's first steps amplify them where gradients are near zero.
TOLERANCE = {"rel": 1e-3, "abs": 1e-4}


def assert_curves(curves: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for key, values in expected.items():
        if key == "accuracy":  # of the first iteration it is that of margins which are 0 but for rounding
            assert curves[key][1:] == values[1:]
            continue
        assert curves[key][0] == pytest.approx(values[0], rel=1e-4, abs=1e-4), key
        assert curves[key] == pytest.approx(values, **TOLERANCE), key


@pytest.mark.parametrize(
    ("stage", "world_size", "layout", "loss"),
    [
        ("sft", 1, [], {}),
        ("sft", 1, ["--no-packing"], {}),
        ("sft", 4, TP2_PP2, {}),
        ("sft", 4, CP2_TP2, {}),
        ("dpo", 1, [], {}),
        ("dpo", 4, TP2_PP2, {}),
        ("dpo", 2, CP2, IPO),
        ("dpo", 2, INTERLEAVED, WITH_SFT),
        ("dpo", 4, [*CP2, *DP2, "--precompute-reference"], SMOOTHED),
        ("dpo", 2, [*DP2, "--no-packing"], IPO),
        ("dpo", 1, ["--no-packing"], WITH_SFT),
    ],
    ids=(
        "sft sft-unpacked sft-TP2xPP2 sft-CP2xTP2 dpo dpo-TP2xPP2 ipo-CP2 sft-coefficient-interleaved "
        "label-smoothing-CP2xDP2-precomputed ipo-DP2-unpacked sft-coefficient-unpacked"
    ).split(),
)
def test_curves_equal_a_dense_loop(
    dense, world: Path, tmp_path: Path, stage: str, world_size: int, layout: list[str], loss: dict[str, float]
) -> None:
    of_loss = (flag for name, value in loss.items() for flag in LOSS_FLAGS[name](value))
    curves = train(world_size, stage, [*flags(world, stage), *layout, *of_loss], tmp_path)
    assert_curves(curves, dense(stage, **loss))


def test_resumed_dpo_is_the_same_bit_for_bit(world: Path, tmp_path: Path) -> None:
    save = ["--save", str(tmp_path / "save"), "--save-interval", "2", "--precompute-reference"]
    argv = [*flags(world, "dpo"), *DP2, "--held-out", "0.4", *save]
    whole = train(2, "dpo", argv, tmp_path / "whole")
    (tmp_path / "save" / "latest_checkpointed_iteration.txt").write_text("2")
    resumed = train(2, "dpo", argv, tmp_path / "resumed")
    for key in ("loss", "reward margin", "grad-norm"):
        assert resumed[key] == whole[key][2:], key
    assert len(whole["accuracy validation-held-out"]) == 2  # before the first step and after the last


def test_resumed_at_another_dp_takes_the_same_batches(world: Path, tmp_path: Path) -> None:
    """Batches of 4 and 2 of the 6 samples: stopped in the second of three epochs, in the learning rate's warm-up."""
    save = tmp_path / "save"
    argv = [
        *("--hf-model", str(world / "llama"), "--sft", str(world / "sft.jsonl"), "--chat-template", "zephyr"),
        *("--seq-length", "160", "--global-batch-size", "4", "--epochs", "3", "--lr", str(LEARNING_RATE)),
        *("--lr-warmup-iters", "4", "--num-workers", "0", "--save", str(save), "--save-interval", "3"),
    ]
    whole = train(1, "sft", argv, tmp_path / "whole")
    assert whole["batch-size"] == [4.0] * 6
    assert [_consumed(save, iteration) for iteration in (3, 6)] == [10, 18]
    (save / "latest_checkpointed_iteration.txt").write_text("3")
    resumed = train(2, "sft", argv, tmp_path / "resumed")
    assert resumed["learning-rate"] == whole["learning-rate"][3:]
    assert whole["learning-rate"][:4] == pytest.approx([LEARNING_RATE * part / 4 for part in (1, 2, 3, 4)])
    # Sums in another order, which Adam amplifies; other batches differ from the first digits on.
    assert resumed["loss"] == pytest.approx(whole["loss"][3:], rel=1e-4)
    assert _consumed(save, 6) == 18


def test_the_seed_orders_every_epoch_and_larger_held_out_shares_hold_smaller_ones(world: Path, tmp_path: Path) -> None:
    """Batches of 2 of the 6 samples, or of those of them that are not held out, in three epochs."""
    run_distributed(check_batches, 1, str(world), str(tmp_path), cpu_emulation=True)


def check_batches(world: str, cache: str) -> None:
    from megatron_mixcpt.config import DPOConfig, SFTConfig

    for stage, config_class in (("sft", SFTConfig), ("dpo", DPOConfig)):
        argv = [*flags(Path(world), stage), "--global-batch-size", "2", "--workers", "1", "--data-cache-path", cache]
        first, again, other = (batches(argv, config_class, "--seed", seed)[0] for seed in ("1", "1", "2"))
        epochs = [sum(first[start : start + 3], []) for start in (0, 3, 6)]
        assert len(first) == 9 and [sorted(epoch) for epoch in epochs] == [list(range(NUM_SAMPLES))] * 3
        assert len({tuple(epoch) for epoch in epochs}) == 3, "each epoch has an order of its own"
        assert first == again and first != other, "the seed alone decides the order"
        seen: set[int] = set()
        for share in ("0.2", "0.4", "0.6"):
            trained, held_out = batches(argv, config_class, "--held-out", share)
            assert seen <= set(held_out) and not set(held_out) & set(sum(trained, []))
            assert set(held_out) | set(sum(trained, [])) == set(range(NUM_SAMPLES))
            seen = set(held_out)
        assert seen, "some sample is held out"


def batches(argv: list[str], config_class: type, *more: str) -> tuple[list[list[int]], list[int]]:
    """The samples of each batch of a run, and those that it holds out."""
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.training.alignment.arguments import parse_alignment_flags
    from megatron_mixcpt.training.alignment.prepare import prepare_run
    from megatron_mixcpt.training.alignment.sft import DEFAULTS

    run = prepare_run(parse_alignment_flags([*argv, *more], config_class, DEFAULTS))
    destroy_global_vars()
    destroy_num_microbatches_calculator()
    order = run.train.order
    held_out = [] if run.valid is None else run.valid.order.batch(0).tolist()
    return [order.batch(index).tolist() for index in range(order.num_batches)], sorted(held_out)


def _consumed(save: Path, iteration: int) -> int:
    """Samples that the checkpoint of an iteration says were trained on: what the model card shows."""
    from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint

    return MegatronCheckpoint(save, iteration).arguments()["consumed_train_samples"]


def test_starts_from_a_checkpoint_and_carries_its_template(world: Path, tmp_path: Path) -> None:
    from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf

    convert_from_hf(world / "llama", tmp_path / "start")
    argv = ["--load", str(tmp_path / "start"), "--save", str(tmp_path / "save"), *flags(world, "sft")[2:]]
    from_checkpoint = train(1, "sft", argv, tmp_path / "log")
    from_folder = train(1, "sft", flags(world, "sft"), tmp_path / "log2")
    assert from_checkpoint["loss"] == from_folder["loss"]
    convert_to_hf(tmp_path / "save", tmp_path / "exported")
    assert "<|assistant|>" in (tmp_path / "exported" / "chat_template.jinja").read_text()


def test_refusals(world: Path, tmp_path: Path) -> None:
    no_answer, messages = tmp_path / "samples.jsonl", tmp_path / "messages.json"
    no_answer.write_text('{"messages": [{"role": "user", "content": "fox"}]}\n')
    train(1, "sft", [*flags(world, "sft"), "--save", str(tmp_path / "save")], tmp_path / "log")
    wrong = {
        "samples.jsonl:1: the last message is of the user": ["--sft", str(no_answer)],
        "no sample to train on (6 too_long)": ["--seq-length", "4"],
        "has no <|start_header_id|>": ["--chat-template", "llama3"],
        "give the model with either --hf-model": ["--load", str(world / "llama")],
        "--train-iters is not used here (--epochs and": ["--train-iters", "3"],
        "--dataloader-type is not used here (each batch is": ["--dataloader-type", "cyclic"],
        # What can be known without the samples is said before any is encoded.
        "--seq-length 200000 is longer than": ["--sft", str(no_answer), "--seq-length", "200000"],
        "is of a run with the files": ["--save", str(tmp_path / "save"), "--sft", str(no_answer)],
        "is of a run with --seed 1234, this one has 5": ["--save", str(tmp_path / "save"), "--seed", "5"],
        "is of a run with --supervise all": ["--save", str(tmp_path / "save"), "--supervise", "last"],
        "is of a run with --epochs 3, this one has 4": ["--save", str(tmp_path / "save"), "--epochs", "4"],
    }
    argvs = [[*flags(world, "sft"), *argv] for argv in wrong.values()]
    run_distributed(refusals_of, 1, argvs, str(messages), cpu_emulation=True)
    for expected, said in zip(wrong, json.loads(messages.read_text()), strict=True):
        assert expected in said and "\n" not in said, said


def refusals_of(argvs: list[list[str]], output: str) -> None:
    """What each of these command lines of SFT is refused with."""
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.config import SFTConfig
    from megatron_mixcpt.errors import MixCPTError
    from megatron_mixcpt.training.alignment.arguments import parse_alignment_flags
    from megatron_mixcpt.training.alignment.prepare import prepare_run
    from megatron_mixcpt.training.alignment.sft import DEFAULTS
    from megatron_mixcpt.training.engine.arguments import without_flags

    said = []
    for argv in argvs:
        with pytest.raises(MixCPTError) as caught:
            prepare_run(parse_alignment_flags(argv, SFTConfig, DEFAULTS))
        said.append(str(caught.value))
        destroy_global_vars()
        destroy_num_microbatches_calculator()
    Path(output).write_text(json.dumps(said))
    # --lr-warmup-iters takes the place of our --lr-warmup-fraction.
    argv = [*without_flags(argvs[0][:-2], ["--lr-warmup-fraction"]), "--lr-warmup-iters", "1"]
    args = parse_alignment_flags(argv, SFTConfig, DEFAULTS).args
    assert (args.lr_warmup_iters, args.lr_warmup_fraction) == (1, None)
