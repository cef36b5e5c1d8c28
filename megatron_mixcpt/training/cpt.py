"""Knowledge mixture continual pre-training (Mix-CPT section 2.2): model, loss and data meet the engine's training loop.

Everything distributed is the engine's ``pretrain()``. Read on in ``distillation/wrapper.py``.
"""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.enums import ModelType
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import unwrap_model
from megatron.training import get_timers, pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.checkpointing import checkpoint_exists
from megatron.training.initialize import _initialize_distributed
from torch import Tensor

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.conversion.engine_model import load_on_this_rank
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.distillation.communicator import DistillationP2PCommunicator
from megatron_mixcpt.distillation.heads import MixCPTHead, MixCPTTargets
from megatron_mixcpt.distillation.wrapper import StudentTeacherModel
from megatron_mixcpt.errors import ConfigError, exit_on_user_error
from megatron_mixcpt.models.layer_specs import gpt_layer_spec
from megatron_mixcpt.training.arguments import Run, parse_run
from megatron_mixcpt.training.batch import get_batch
from megatron_mixcpt.training.datasets import dataset_provider
from megatron_mixcpt.training.engine_repairs import repair_engine
from megatron_mixcpt.training.l2 import L2Anchor
from megatron_mixcpt.training.loss import TokensPerSecond, mixcpt_loss_func
from megatron_mixcpt.training.model import StudentTeacherModelConfig
from megatron_mixcpt.training.summary import describe


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says; the engine's flags and those of :class:`MixCPTConfig`."""
    # The engine asks for it: kernels of tensor parallelism then start in the order they are issued.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    run = parse_run(sys.argv[1:] if argv is None else argv)
    if run.args.rank == 0:
        print(f"\n{describe(run)}\n", flush=True)
    if run.config.dry_run:
        return
    repair_engine()
    model_config = build_model_config(run)
    container = pretrain_cfg_container_from_args(run.args, model_config)
    # The engine's own first step, taken here because its communicator between stages is made from the groups.
    _initialize_distributed(None, None, None)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if run.args.save and run.args.rank == 0:
        copy_hf_metadata(run.student.folder, run.args.save, run.student)
    with _explained():
        pretrain(
            container,
            dataset_provider(run.args, run.manifest, run.plan),
            ModelType.encoder_or_decoder,
            forward_step_func(run.args, run.config, groups),
            skip_model_parallel_init=True,
            **_pipeline(run.config, model_config, groups),
        )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say in one line, with the way out, what the engine says by a bare assertion about a resumed run's flags."""
    try:
        yield
    except AssertionError as error:
        if not str(error).startswith("OptimizerParamScheduler"):
            raise
        raise ConfigError(
            f"the run resumes with another learning rate schedule than it was saved with ({error}): give the flags it "
            "had (--train-iters or --train-samples, --lr...), or --override-opt_param-scheduler to take the new ones"
        ) from error


def build_model_config(run: Run) -> StudentTeacherModelConfig:
    """The student's architecture, its weights, and the teacher beside it."""
    args, config = run.args, run.config
    model_config = gpt_config_from_args(args, model_config_cls=StudentTeacherModelConfig)
    model_config.transformer_layer_spec = gpt_layer_spec
    model_config.rope_scaling_factor = args.rope_scaling_factor  # which the engine's function leaves at its default
    model_config.holds_teacher = config.holds_teacher
    model_config.build_head = lambda groups: MixCPTHead(
        alpha=config.alpha,
        swap=config.distillation == "lssd",
        vocab_size=run.student.vocab_size,
        tp_group=groups.tp,
        divergence=config.divergence,
        temperature=config.distillation_temperature,
        chunk_tokens=config.loss_chunk_tokens,
        sequence_parallel=args.sequence_parallel,
        gradient_accumulation_fusion=args.gradient_accumulation_fusion,
    )
    model_config.pre_wrap_hooks = [functools.partial(load_weights, run)]
    return model_config


def load_weights(run: Run, chunks: list[StudentTeacherModel]) -> list[StudentTeacherModel]:
    """Fill the student, unless a checkpoint will, and the teacher, in place: each rank its own slices."""
    resumes = any(path and checkpoint_exists(path) for path in (run.args.load, run.args.pretrained_checkpoint))
    for chunk in chunks:
        if not resumes:
            load_on_this_rank(chunk.module, run.student)
        if chunk.teacher is not None:
            load_on_this_rank(chunk.teacher, run.teacher)
    return chunks


def _pipeline(config: MixCPTConfig, model_config: StudentTeacherModelConfig, groups: ProcessGroupCollection) -> dict:
    """The schedule's communicator, where two models' activations travel between stages; else the engine's own."""
    if not config.runs_teacher or groups.pp.size() == 1:
        return {}
    communicator = DistillationP2PCommunicator(groups.pp, model_config.transformer)
    return {"pg_collection": groups, "p2p_communicator": communicator}


def forward_step_func(args: argparse.Namespace, config: MixCPTConfig, groups: ProcessGroupCollection) -> Callable:
    """The engine's ``forward_step_func``: one microbatch through one stage of the model."""
    read = functools.partial(
        get_batch, seed=args.seed, packed_attention=args.transformer_impl == "transformer_engine", cp_group=groups.cp
    )
    tokens_per_second = TokensPerSecond(groups.dp_cp.size())
    anchor = None
    if config.distillation == "l2" and config.l2_coefficient > 0.0:
        chunks = args.virtual_pipeline_model_parallel_size or 1
        anchor = L2Anchor(config.l2_coefficient, groups.mp, tp_rank=groups.tp.rank(), num_chunks=chunks)

    def forward_step(data_iterator: Iterator, model: torch.nn.Module) -> tuple[Tensor | tuple[Tensor, ...], Callable]:
        training = torch.is_grad_enabled()
        # Validation distils every sample, so that its figures do not depend on the fraction.
        fraction = (config.distillation_fraction if training else 1.0) if config.runs_teacher else 0.0
        timers = get_timers()
        timers("batch-generator", log_level=2).start()
        batch = read(data_iterator, fraction=fraction)
        timers("batch-generator").stop()
        output = model(
            batch.tokens,
            batch.position_ids,
            batch.attention_mask,
            targets=MixCPTTargets(batch.labels, batch.loss_mask, batch.distill_mask),
            runs_teacher=batch.distill_mask is not None,
            packed_seq_params=batch.packed_seq_params,
        )
        penalty = None
        if anchor and training:
            penalty = anchor.after_forward(unwrap_model(model), batch.num_tokens, get_num_microbatches())
        loss_func = functools.partial(mixcpt_loss_func, batch.loss_mask, batch.distill_mask, penalty=penalty)
        return output, functools.partial(tokens_per_second, loss_func) if training else loss_func

    return forward_step
