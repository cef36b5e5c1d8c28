"""Runs with a fault: incomplete checkpoints, signals, numbers that are not finite, and settings that have changed."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.convert import convert_to_hf
from megatron_mixcpt.testing import RankFailedError, run_distributed
from tests.distributed.tiny_run import flags, make_mixture, make_world, train, train_rank

TP2 = ["--tensor-model-parallel-size", "2", "--use-distributed-optimizer"]
EVERY_2 = ["--save-interval", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run of six iterations at TP2, which is deterministic and keeps the last two."""
    root = tmp_path_factory.mktemp("undisturbed")
    train(2, command(world, root / "save"), root / "log")
    return root / "save"


def command(world: Path, save: Path) -> list[str]:
    watched = ["--deterministic", "--keep-last", "2"]
    return [*flags(world, iterations=6), *TP2, *EVERY_2, *watched, "--save", str(save)]


def weights(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    convert_to_hf(checkpoint, folder)
    return load_file(folder / "model.safetensors")


def assert_same_bits(checkpoint: Path, expected: Path, folder: Path) -> None:
    actual_weights, expected_weights = weights(checkpoint, folder / "actual"), weights(expected, folder / "expected")
    for name, tensor in expected_weights.items():
        assert torch.equal(actual_weights[name], tensor), name


def test_old_checkpoints_are_deleted(undisturbed: Path) -> None:
    assert sorted(path.name for path in undisturbed.glob("iter_*")) == ["iter_0000004", "iter_0000006"]
    assert not list(undisturbed.glob(".removed-*"))


def test_torn_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    undisturbed: Path, world: Path, tmp_path: Path
) -> None:
    """As well as that --deterministic gives the same bits twice, by another process in another folder."""
    save = shutil.copytree(undisturbed, tmp_path / "save")
    truncated = next(path for path in sorted((save / "iter_0000006").glob("*.distcp")) if path.stat().st_size)
    os.truncate(truncated, truncated.stat().st_size // 2)
    resumed = train(2, command(world, save), tmp_path / "log")
    assert len(resumed["loss"]) == 2  # from iteration 4 on
    assert_same_bits(save, undisturbed, tmp_path)
    lines = shown(save)  # the log goes on where that of the first run ended
    assert len(lines) == 8 and lines[6:] == lines[4:6]


def shown(save: Path) -> list[str]:
    """The lines of iterations, without what depends on the clock."""
    log = (save / "logs" / "rank-00001.log").read_text()
    lines = re.findall(r"^iteration \d+/6 \|.*$", log, re.MULTILINE)
    return [re.sub(r" \| (tokens per second|time left): [^|]*", "", line) for line in lines]


def test_signal_ends_with_a_checkpoint_and_the_code_that_asks_for_a_restart(
    undisturbed: Path, world: Path, tmp_path: Path
) -> None:
    argv = command(world, tmp_path / "save")
    run_distributed(interrupted_rank, 2, argv, str(tmp_path / "marker"), cpu_emulation=True, timeout_s=240)
    reached = int((tmp_path / "save" / "latest_checkpointed_iteration.txt").read_text())
    assert 2 <= reached < 6 and (tmp_path / "marker").exists()
    train(2, argv, tmp_path / "log")
    assert_same_bits(tmp_path / "save", undisturbed, tmp_path)


def interrupted_rank(argv: list[str], marker: str) -> None:
    """Only the second rank gets the signal, as soon as the first checkpoint is there."""
    os.environ["MIXCPT_PREEMPTED"] = marker
    save = Path(argv[argv.index("--save") + 1])
    if os.environ["RANK"] == "1":
        threading.Thread(target=send_when_saved, args=(save,), daemon=True).start()
    with pytest.raises(SystemExit) as exit:
        train_rank(argv)
    assert exit.value.code == 75


def send_when_saved(save: Path) -> None:
    while not (save / "latest_checkpointed_iteration.txt").exists():
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_ends_a_validation_after_the_running_step(world: Path, tmp_path: Path) -> None:
    """And then the training, with a checkpoint; of the fifty steps of the first validation two are run."""
    argv = [*flags(world, iterations=3), "--split", "50,50,0", "--eval-interval", "3", "--save", str(tmp_path / "save")]
    run_distributed(interrupted_validation, 1, argv, str(tmp_path / "steps"), cpu_emulation=True, timeout_s=240)
    assert (tmp_path / "steps").read_text() == "2"
    assert (tmp_path / "save" / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert "validation after" not in (tmp_path / "save" / "logs" / "rank-00000.log").read_text()


def interrupted_validation(argv: list[str], output: str) -> None:
    """The signal comes in the first step of the validation before training; counts the steps."""
    from megatron.training import training

    steps, get = [], training.get_forward_backward_func

    def counting(*positional: object, **named: object) -> Callable:
        run_step = get(*positional, **named)

        def step(*rest: object, **options: object) -> object:
            if options["forward_only"]:
                steps.append(None)
                os.kill(os.getpid(), signal.SIGUSR1)
            return run_step(*rest, **options)

        return step

    training.get_forward_backward_func = counting
    with pytest.raises(SystemExit) as exit:
        train_rank(argv)
    assert exit.value.code == 75
    Path(output).write_text(str(len(steps)))


def test_numbers_that_are_not_finite_stop_the_run(world: Path, tmp_path: Path) -> None:
    """An output that overflows makes the loss and its gradients NaN; a weight that is NaN is found before that."""
    argv = [*flags(world, iterations=4), "--distillation", "none"]
    message = failure([*argv, "--hf-model", str(spoilt(world, tmp_path / "huge", 1e38))])
    assert re.search(r"NumbersError: rank 0, iteration 1: a gradient is not finite .*NaN in local grad norm", message)
    assert re.search(r"samples: \[0\] (cpt|sft|dpo) document \d+", message)
    assert "there is no checkpoint to return to" in message
    message = failure([*argv, "--hf-model", str(spoilt(world, tmp_path / "nan", float("nan")))])
    assert "decoder.final_layernorm.weight of the trained model holds NaN or Inf" in message


def spoilt(world: Path, folder: Path, value: float) -> Path:
    shutil.copytree(world / "llama", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def failure(argv: list[str]) -> str:
    """The line that the run ends with."""
    with pytest.raises(RankFailedError) as caught:
        run_distributed(failing_rank, 1, argv, cpu_emulation=True, timeout_s=240)
    return str(caught.value).strip().splitlines()[-1]


def failing_rank(argv: list[str]) -> None:
    """What the tool does, its errors not yet turned into an exit code."""
    from megatron_mixcpt.training.pretraining.cpt import main

    main.__wrapped__(argv)


def test_a_resumed_run_with_other_settings_is_refused(undisturbed: Path, world: Path, tmp_path: Path) -> None:
    make_mixture(tmp_path / "other", world / "llama", seed=1)
    weights_only = [*flags(world, iterations=1), "--save", str(tmp_path / "weights"), "--no-save-optim"]
    train(1, weights_only, tmp_path / "log")
    good = command(world, undisturbed)
    wrong = {
        r"iter_0000006 is of a run with --alpha 0.8, this one has 0.5: give what it had": ["--alpha", "0.5"],
        r"--distillation lssd, this one has kd": ["--distillation", "kd"],
        r"--seed 1234, this one has 7": ["--seed", "7"],
        r"the mixture's content \w+, this one has": ["--mixture", str(tmp_path / "other")],
        r"the teacher \w+, this one has": ["--teacher", str(world / "llama")],
        r"iter_0000001 was saved without the optimizer .*give it as --pretrained-checkpoint": [
            *("--load", str(tmp_path / "weights")),
        ],
        r"is of another architecture than the model: add_qkv_bias False": [
            *("--hf-model", str(world / "qwen2"), "--teacher", str(world / "qwen2-teacher")),
        ],
    }
    messages = tmp_path / "messages.json"
    run_distributed(refusals_of, 1, [[*good, *argv] for argv in wrong.values()], str(messages), cpu_emulation=True)
    for expected, said in zip(wrong, json.loads(messages.read_text()), strict=True):
        assert re.search(expected, said) and "\n" not in said, said


def refusals_of(argvs: list[list[str]], output: str) -> None:
    """What each command line is refused with; the first is allowed with --resume-with-changes."""
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.errors import MixCPTError
    from megatron_mixcpt.training.pretraining.arguments import parse_run

    os.environ |= {"WORLD_SIZE": "2", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}  # the layout is TP2; nothing is started
    said = []
    for argv in argvs:
        with pytest.raises(MixCPTError) as caught:
            parse_run(argv)
        said.append(str(caught.value))
        destroy_global_vars()
        destroy_num_microbatches_calculator()
    assert parse_run([*argvs[0], "--resume-with-changes"]).args.load
    Path(output).write_text(json.dumps(said))
