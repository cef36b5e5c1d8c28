"""The last mile of every training entry: from checked arguments into the engine's ``pretrain()``."""

import argparse
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch.distributed as dist
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training import get_tensorboard_writer, pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.initialize import _initialize_distributed

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.config import RunConfig
from megatron_mixcpt.distillation.communicator import DistillationP2PCommunicator
from megatron_mixcpt.distillation.wrapper import Head, StudentTeacherModel
from megatron_mixcpt.models.layer_specs import gpt_layer_spec
from megatron_mixcpt.models.options import ModelOptions
from megatron_mixcpt.models.rotary import needs_unfused_rotation
from megatron_mixcpt.rank_exit import end_child_processes
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.arguments import engine_refusals, explicit_arguments
from megatron_mixcpt.training.engine.async_writer import bound_writer
from megatron_mixcpt.training.engine.checkpoints import guarded_saves, settle_checkpoints
from megatron_mixcpt.training.engine.console import shown_training
from megatron_mixcpt.training.engine.loss_watch import DescribeSample, LossWatch, watched_numbers
from megatron_mixcpt.training.engine.patches import Change, change_engine, restore_engine
from megatron_mixcpt.training.engine.preemption import exits_as_preempted, preemption_handling, validation_broken_off
from megatron_mixcpt.training.engine.repairs import repairs
from megatron_mixcpt.training.engine.run_record import schedule_check
from megatron_mixcpt.training.engine.whole_validation import each_set_once_from_the_start
from megatron_mixcpt.training.expert_groups import regrouped_experts
from megatron_mixcpt.training.model import StudentTeacherModelConfig
from megatron_mixcpt.training.one_run import only_run_in
from megatron_mixcpt.training.router_losses import report_auxiliary_losses


def prepare_environment() -> None:
    """Set what the engine asks for, before it reads its arguments; without torchrun this process is the only rank."""
    restore_engine()
    change_engine([preemption_handling(), *bound_writer()])
    if "RANK" not in os.environ:  # started without torchrun: the only rank
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ.update(alone | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})


@contextlib.contextmanager
def only_run(argv: Sequence[str], config_class: type[RunConfig]) -> Iterator[None]:
    """Around all that reads or writes ``--save``: no other training writes there meanwhile.

    Raises ConfigError on every rank, as :func:`~megatron_mixcpt.training.one_run.only_run_in` does.
    """
    given = explicit_arguments(argv, config_class)
    with only_run_in(given.get("save"), dry_run=given.get("dry_run", False)):
        yield


def start_distributed() -> ProcessGroupCollection:
    """Take the engine's own first step: its communicator between stages, and its heads, are made from the groups."""
    _initialize_distributed(None, None, None)
    return ProcessGroupCollection.use_mpu_process_groups()


def build_model_config(
    args: argparse.Namespace,
    *,
    options: ModelOptions,
    teacher_options: ModelOptions,
    holds_teacher: bool,
    build_head: Callable[[ProcessGroupCollection], Head],
    load_weights: Callable[[list[StudentTeacherModel]], list[StudentTeacherModel]],
    offload_teacher: bool = False,
    teacher_fp8: bool = False,
    lora: LoRASettings | None = None,
    teaches_itself: bool = False,
) -> StudentTeacherModelConfig:
    """The student's architecture from the engine's arguments, the teacher beside it, and where their weights are from.

    Args:
        args: the engine's arguments.
        options: the student's, beyond the engine's arguments.
        teacher_options: the teacher's.
        holds_teacher: build the frozen teacher's stages.
        build_head: see :class:`StudentTeacherModelConfig`.
        load_weights: fills this rank's chunks in place and returns them.
        offload_teacher: keep the teacher's layers in host memory.
        teacher_fp8: run the teacher's layers in 8 bits.
        lora: adapters to train in the place of the student, which is frozen.
        teaches_itself: let the student with its adapters off be the teacher, in the place of one of its own.

    Raises ConfigError for flags that the engine's own check of the model refuses.
    """
    with engine_refusals():
        model_config = gpt_config_from_args(args, model_config_cls=StudentTeacherModelConfig)
    model_config.transformer_layer_spec = gpt_layer_spec
    models = (options, teacher_options) if holds_teacher else (options,)
    unfused = any(needs_unfused_rotation(model_config.transformer, model) for model in models)
    if unfused and args.apply_rope_fusion and args.rank == 0:
        say("rotation of queries and keys: without fused kernels, which have no attention factor")
    model_config.student_options, model_config.teacher_options = options, teacher_options
    model_config.holds_teacher = holds_teacher
    model_config.offload_teacher = offload_teacher
    model_config.teacher_fp8 = teacher_fp8
    model_config.lora, model_config.lora_seed, model_config.teaches_itself = lora, args.seed, teaches_itself
    model_config.build_head = build_head
    model_config.pre_wrap_hooks = [load_weights]
    return model_config


def train(
    args: argparse.Namespace,
    config: RunConfig,
    model_config: StudentTeacherModelConfig,
    groups: ProcessGroupCollection,
    dataset_provider: Callable,
    forward_step: Callable,
    describe_sample: DescribeSample,
    *,
    runs_teacher: bool,
    engine_changes: Iterable[Change] = (),
    tokens_of: Callable[[int], int] | None = None,
) -> None:
    """Run the engine's training loop.

    Args:
        args: the engine's arguments.
        config: what all trainings share of our settings.
        model_config: from :func:`build_model_config`.
        groups: from :func:`start_distributed`.
        dataset_provider: as ``pretrain()`` takes it.
        forward_step: as ``pretrain()`` takes it.
        describe_sample: names a sample of the training dataset in reports.
        runs_teacher: whether the teacher's activations travel between stages.
        engine_changes: changes to the engine beside those that every training makes.
        tokens_of: from an iteration, counted from 1, to the tokens of its batch; None: sequences are full.

    Raises:
        ConfigError: a resumed run's flags contradict its checkpoint.
        CheckpointError: there is no complete checkpoint to resume from, or one cannot be written.
        NumbersError: a loss or a gradient is not finite.
        SystemExit: the engine's end after a signal or ``--exit-interval`` and the like.
    """
    pipeline = {}
    if runs_teacher and groups.pp.size() > 1:
        communicator = DistillationP2PCommunicator(groups.pp, model_config.transformer)
        pipeline = {"pg_collection": groups, "p2p_communicator": communicator}
    watch = LossWatch(args, config.loss_spike_sigma, describe_sample)
    changes = [*_changes(args, config, watch), *engine_changes]
    takes_evaluations = any(change.name == "megatron.training.training.evaluate" for change in engine_changes)
    tokens_of = tokens_of or (lambda iteration: args.seq_length * args.global_batch_size)
    change_engine([*changes, *shown_training(args, tokens_of, shows_evaluations=not takes_evaluations)])
    report_auxiliary_losses(args)
    container = pretrain_cfg_container_from_args(args, model_config)
    if args.rank == 0:
        settle_checkpoints(args)
    dist.barrier()  # what the first rank wrote is there
    with exits_as_preempted(args.rank, args.save), _complete_ends():
        pretrain(
            container,
            watch.datasets(dataset_provider),
            ModelType.encoder_or_decoder,
            watch.forward_step(forward_step),
            skip_model_parallel_init=True,
            **pipeline,
        )


@contextlib.contextmanager
def _complete_ends() -> Iterator[None]:
    """However training ends, its curves are on the disk, and no process of it is left that holds the rank's log."""
    try:
        yield
    finally:
        end_child_processes()
        if writer := get_tensorboard_writer():
            writer.flush()


def _changes(args: argparse.Namespace, config: RunConfig, watch: LossWatch) -> list[Change]:
    """The changes to the engine that this run needs, whatever it trains; their order is the register's."""
    validation = each_set_once_from_the_start() if args.full_validation else []
    saving = guarded_saves(config.keep_last)
    validation += validation_broken_off()
    return [*repairs(args), regrouped_experts(), schedule_check(), *saving, *watched_numbers(watch), *validation]
