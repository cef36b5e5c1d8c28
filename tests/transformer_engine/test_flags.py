"""Flags that Transformer Engine changes: each is accepted, or refused in one line, where it is installed."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_run import flags, make_world

NO_DEVICE = "this device does not support it"
REFUSED = {
    "--fp8-format hybrid": "--fp8-format hybrid with --fp8-recipe delayed is not supported",
    "--fp8-format e4m3 --fp8-recipe delayed": "its scales outlast a step",
    "--fp8-format hybrid --fp8-recipe custom": "with --fp8-recipe custom is not supported",
    "--fp8-format hybrid --fp8-recipe tensorwise": "needs --bf16",
    "--fp8-format hybrid --fp8-recipe mxfp8 --bf16": f"--fp8-recipe mxfp8: {NO_DEVICE} (Device compute capability 10.0",
    "--fp8-format hybrid --fp8-recipe tensorwise --bf16": f"--fp8-recipe tensorwise: {NO_DEVICE} (Device compute",
    "--fp8-recipe tensorwise": "--fp8-recipe has no effect without --fp8-format",
    "--first-last-layers-bf16": "--first-last-layers-bf16 has no effect without --fp8-format",
    "--fp8-margin 1": "--fp8-margin is not supported (it belongs to delayed scaling",
    "--no-fp8-wgrad": "--no-fp8-wgrad is not supported (it belongs to delayed scaling",
    "--fp8-param-gather": "--fp8-param-gather is not supported (weights are loaded",
    "--fp8-output-proj": "--fp8-output-proj is not supported (the losses take",
    "--fp4-format e2m1": "--fp4-format is not supported",
    "--te-precision-config-file none.yaml": "--te-precision-config-file is not supported",
    "--tp-comm-overlap": "--tp-comm-overlap is not supported",
    "--te-rng-tracker": "--te-rng-tracker is not supported (only CUDA graphs need it",
    "--cross-entropy-loss-fusion": "--cross-entropy-loss-fusion is not supported (the losses are this package's",
    "--cross-entropy-fusion-impl te": "--cross-entropy-fusion-impl is not supported (the losses are this package's",
    "--use-transformer-engine-op-fuser": "--use-transformer-engine-op-fuser is not supported",
    "--use-te-activation-func": "--use-te-activation-func is not supported",
    "--fused-residual-rmsnorm": "--fused-residual-rmsnorm is not supported",
    "--attention-backend local": "give --transformer-impl local",
    "--attention-backend flash --transformer-impl local": "--attention-backend chooses a kernel in Transformer Engine",
    "--teacher-fp8": f"--teacher-fp8: {NO_DEVICE} (Device compute capability 8.9 or higher",
    "--teacher-fp8 --transformer-impl local": "--teacher-fp8 needs Transformer Engine",
    "--fp8-format hybrid --transformer-impl local": "--fp8-format needs Transformer Engine",
    "--apply-layernorm-1p": "--apply-layernorm-1p True (it has",
    "--softmax-type off-by-one": "--softmax-type off-by-one (it has",
    "--window-size 4,0": "--window-size",
    "--context-parallel-size 2 --document-masking": "--document-masking with --context-parallel-size 2",
    "--context-parallel-size 2 --cp-comm-type a2a --transformer-impl local": "--cp-comm-type chooses how ranks",
}
ACCEPTED = [
    *(f"--attention-backend {name}" for name in ("flash", "fused", "unfused", "auto")),
    "--no-gradient-accumulation-fusion",
    *(f"--no-{name}-fusion" for name in ("masked-softmax", "bias-gelu", "bias-swiglu", "bias-dropout", "rope")),
    "--no-persist-layer-norm",
    "--cp-comm-type a2a --context-parallel-size 2",
]


def test_each_is_accepted_or_refused_in_one_line(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    shared = flags(world, iterations=1)
    cases = [*REFUSED, *ACCEPTED]
    argvs = [[*shared, *case.split()] for case in cases]
    run_distributed(answers, 1, argvs, str(tmp_path / "said.json"), cpu_emulation=True, timeout_s=290)
    said = dict(zip(cases, json.loads((tmp_path / "said.json").read_text()), strict=True))
    wrong = {case: said[case] for case, message in REFUSED.items() if message not in said[case] or "\n" in said[case]}
    assert not wrong, json.dumps(wrong, indent=1)
    assert not {case: said[case] for case in ACCEPTED if said[case]}


def answers(argvs: list[list[str]], output: str) -> None:
    """What each command line is refused with; empty where it is accepted. Anything but our own errors is a failure."""
    import os

    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.errors import MixCPTError
    from megatron_mixcpt.training.pretraining.arguments import parse_run

    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    said = []
    for argv in argvs:
        os.environ["WORLD_SIZE"] = "2" if "--context-parallel-size" in argv else "1"
        try:
            gpt_config_from_args(parse_run(argv).args)
            said.append("")
        except MixCPTError as error:
            said.append(str(error))
        except Exception as error:  # shown beside the flag
            said.append(f"{type(error).__name__}\n{error}")
        destroy_global_vars()
        destroy_num_microbatches_calculator()
    Path(output).write_text(json.dumps(said))


def test_eight_bits_are_accepted_where_the_device_supports_them(tmp_path: Path) -> None:
    """A device's answer is made up; what is built is a student in 8 bits and a teacher in the precision asked for."""
    run_distributed(check_eight_bits, 1, str(make_world(tmp_path)), cpu_emulation=True, timeout_s=290)


def check_eight_bits(world: str) -> None:
    import transformer_engine.pytorch.fp8 as fp8
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.global_vars import destroy_global_vars

    from megatron_mixcpt.training.engine import transformer_engine
    from megatron_mixcpt.training.model import StudentTeacherModelConfig, _frozen
    from megatron_mixcpt.training.pretraining.arguments import parse_run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("check_fp8_support", "check_fp8_block_scaling_support"):
            patch.setattr(fp8, name, lambda: (True, ""))
        # the tiny model's sizes do not fit the kernels'
        patch.setattr(transformer_engine, "STATELESS_RECIPES", dict.fromkeys(transformer_engine.STATELESS_RECIPES, 1))
        for given, student, teacher in (
            ("", None, None),
            ("--teacher-fp8", None, ("e4m3", "tensorwise")),
            ("--fp8-format hybrid --fp8-recipe tensorwise", ("hybrid", "tensorwise"), None),
            (
                "--fp8-format hybrid --fp8-recipe blockwise --first-last-layers-bf16 --teacher-fp8",
                ("hybrid", "blockwise"),
                ("e4m3", "tensorwise"),
            ),
        ):
            argv = [*flags(Path(world), iterations=1), "--bf16", *given.split()]
            config = gpt_config_from_args(parse_run(argv).args, model_config_cls=StudentTeacherModelConfig)
            config.teacher_fp8 = "--teacher-fp8" in argv
            for model, expected in ((config, student), (_frozen(config), teacher)):
                found = (model.transformer.fp8, model.transformer.fp8_recipe) if model.transformer.fp8 else None
                assert found == expected, (given, found)
            destroy_global_vars()
            destroy_num_microbatches_calculator()
