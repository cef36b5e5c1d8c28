"""The register of engine changes: each name of Megatron or torch that we replace, wrap or override, or that is private.

    python -m megatron_mixcpt.training.engine.patches        # prints the register

Nothing else in the package assigns to an attribute of the engine. A module that needs a change offers a
:class:`Change`, and the launch applies those that its run needs with :func:`change_engine`. After an upgrade of the
engine, ``tests/unit/training/engine/test_patches.py`` names the entries whose signature is another one, and with each
the module to look at. The stand-ins for CUDA have a table of their own, ``cpu_emulation.EMULATED``.
"""

import functools
import itertools
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

REPLACED, WRAPPED, OVERRIDDEN, READ = "replaced", "wrapped", "overridden", "read"


class Entry(NamedTuple):
    """One name of the engine and what one of our modules does with it."""

    name: str
    """Where the engine looks it up: ``package.module.attribute`` or ``package.module.Class.attribute``."""
    kind: str
    """``replaced``, ``wrapped``, ``overridden`` in a subclass, or ``read`` although it is private."""
    owner: str
    """Our module, below ``megatron_mixcpt/``."""
    reason: str


class Change(NamedTuple):
    """A change to the engine that a run asks for; ``REGISTER`` has an entry for it."""

    name: str
    """As in :class:`Entry`."""
    owner: str
    """``__name__`` of the module that offers the change."""
    make: Callable[[Any], Any]
    """Makes the new value from the one below it: the engine's own, or that of the entry before."""


# Where several entries wrap the same name, the first is the innermost.
REGISTER = (
    Entry(
        "megatron.training.training.setup_model_and_optimizer",
        WRAPPED,
        "training/engine/console.py",
        "shows on the terminal that weights are loaded, and for how long",
    ),
    Entry(
        "megatron.training.training.build_train_valid_test_data_iterators",
        WRAPPED,
        "training/engine/console.py",
        "shows on the terminal that datasets are built, and for how long",
    ),
    Entry(
        "megatron.training.training.training_log",
        WRAPPED,
        "training/engine/console.py",
        "shows our line of an interval; the engine's own goes to the rank log",
    ),
    Entry(
        "megatron.training.training.train",
        WRAPPED,
        "training/engine/console.py",
        "shows on the terminal that the first step begins",
    ),
    Entry(
        "megatron.training.training.train",
        WRAPPED,
        "training/engine/whole_validation.py",
        "validation sets are measured before the first step",
    ),
    Entry(
        "megatron.training.training.train",
        WRAPPED,
        "training/engine/loss_watch.py",
        "weights that are not finite are found before anything runs",
    ),
    Entry(
        "megatron.training.training.train_step",
        WRAPPED,
        "training/engine/loss_watch.py",
        "a loss or gradient that is not finite is reported with its samples, as is a spike of the loss",
    ),
    Entry(
        "megatron.core.rerun_state_machine.RerunStateMachine.validate_result",
        WRAPPED,
        "training/engine/loss_watch.py",
        "a rejected gradient raises a distinct error type",
    ),
    Entry(
        "megatron.core.optimizer_param_scheduler.OptimizerParamScheduler.load_state_dict",
        WRAPPED,
        "training/engine/run_record.py",
        "a bare assertion about another learning rate schedule is explained",
    ),
    Entry(
        "megatron.training.training.dummy_train_step",
        REPLACED,
        "training/engine/repairs.py",
        "--iterations-to-skip passes over a batch on every rank, not only on the first of a tensor parallel group",
    ),
    Entry(
        "megatron.training.training.dummy_train_step",
        REPLACED,
        "training/alignment/batch_steps.py",
        "likewise in SFT and DPO, whose batches differ in their number of microbatches",
    ),
    Entry(
        "megatron.training.training.get_forward_backward_func",
        WRAPPED,
        "training/alignment/batch_steps.py",
        "SFT and DPO tell the schedule how many microbatches each batch is, and of which length",
    ),
    Entry(
        "megatron.training.training.get_forward_backward_func",
        WRAPPED,
        "training/engine/preemption.py",
        "a signal ends a validation after the running step",
    ),
    Entry(
        "megatron.training.training.consume_seqlen_stats_in_iteration",
        REPLACED,
        "training/alignment/batch_steps.py",
        "the throughput of SFT and DPO counts the tokens that a batch holds, which the host knows",
    ),
    Entry(
        "megatron.training.training.evaluate",
        WRAPPED,
        "training/engine/console.py",
        "collects the figures of each validation set for the table",
    ),
    Entry(
        "megatron.training.training.evaluate",
        WRAPPED,
        "training/pretraining/forgetting.py",
        "the forgetting meter takes the losses of each validation set",
    ),
    Entry(
        "megatron.training.training.evaluate_and_print_results",
        WRAPPED,
        "training/engine/console.py",
        "shows the figures of all validation sets as a table",
    ),
    Entry(
        "megatron.training.training.evaluate_and_print_results",
        WRAPPED,
        "training/pretraining/forgetting.py",
        "the forgetting meter prints its table after all validation sets",
    ),
    Entry(
        "megatron.training.training.evaluate_and_print_results",
        WRAPPED,
        "training/engine/whole_validation.py",
        "each sequence of a validation set is measured once, at any batch size and pipeline schedule",
    ),
    Entry(
        "megatron.training.training.evaluate_and_print_results",
        WRAPPED,
        "training/engine/preemption.py",
        "a validation that a signal has ended is followed by the checkpoint",
    ),
    Entry(
        "megatron.training.training.save_checkpoint",
        WRAPPED,
        "training/engine/console.py",
        "shows on the terminal that a checkpoint is saved, and for how long",
    ),
    Entry(
        "megatron.training.training.save_checkpoint",
        WRAPPED,
        "training/engine/checkpoints.py",
        "nothing is written where another run has taken over, a complete iteration is not overwritten, the new one is "
        "flushed before old ones are deleted, and errors of the disk are explained",
    ),
    Entry(
        "megatron.training.training.maybe_finalize_async_save",
        WRAPPED,
        "training/engine/checkpoints.py",
        "errors of the disk are explained for asynchronous saves too",
    ),
    Entry(
        "megatron.training.checkpointing.schedule_async_save",
        WRAPPED,
        "training/engine/console.py",
        "shows on the terminal that an asynchronous save is complete",
    ),
    Entry(
        "megatron.training.checkpointing.schedule_async_save",
        WRAPPED,
        "training/engine/checkpoints.py",
        "an asynchronous save is completed only where --save is still this run's, and flushed; then old ones "
        "are deleted",
    ),
    Entry(
        "megatron.training.global_vars.DistributedSignalHandler",
        REPLACED,
        "training/engine/preemption.py",
        "two signals end a run, and ranks agree on them without waiting for the device",
    ),
    Entry(
        "megatron.core.dist_checkpointing.load",
        WRAPPED,
        "training/engine/repairs.py",
        "a checkpoint of layers without Transformer Engine lacks extra states that its layers would load",
    ),
    Entry(
        "megatron.core.dist_checkpointing.load",
        WRAPPED,
        "training/expert_groups.py",
        "a mixture of experts resumes at another expert parallel size",
    ),
    Entry(
        "megatron.core.datasets.utils.compile_helpers",
        REPLACED,
        "training/engine/repairs.py",
        "the wheel holds the compiled helper but no Makefile to compile it with",
    ),
    Entry(
        "megatron.core.optimizer.DistributedOptimizer",
        REPLACED,
        "training/engine/repairs.py",
        "with PyTorch's Adam the engine's optimizer cannot load its own checkpoints",
    ),
    Entry(
        "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer._set_main_param_and_optimizer_states",
        OVERRIDDEN,
        "training/engine/repairs.py",
        "it looks for Adam's step among the tensors, where the engine has removed it",
    ),
    Entry(
        "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue",
        REPLACED,
        "training/engine/repairs.py",
        "a synchronous save needs no server process for its queue",
    ),
    Entry(
        "megatron.core.dist_checkpointing.strategies.async_utils.PersistentAsyncCaller.async_loop",
        REPLACED,
        "training/engine/async_writer.py",
        "the process that writes asynchronous checkpoints ends with its rank, and survives a signal to both",
    ),
    Entry(
        "megatron.core.dist_checkpointing.strategies.async_utils.PersistentAsyncCaller._get_process",
        WRAPPED,
        "training/engine/async_writer.py",
        "a rank would wait for ever for a writer that was killed",
    ),
    Entry(
        "megatron.core.pipeline_parallel.p2p_communication.P2PCommunicator._communicate",
        OVERRIDDEN,
        "distillation/communicator.py",
        "the teacher's activations travel in the student's message",
    ),
    Entry(
        "megatron.core.pipeline_parallel.p2p_communication.P2PCommunicator._communicate_shapes",
        OVERRIDDEN,
        "distillation/communicator.py",
        "forward and backward messages have different shapes, which both sides know",
    ),
    Entry(
        "megatron.core.datasets.gpt_dataset.GPTDataset._build_document_sample_shuffle_indices",
        OVERRIDDEN,
        "data/datasets/passes.py",
        "it shuffles several passes over the data together, and its files of one pass are not flushed",
    ),
    Entry(
        "megatron.core.datasets.blended_dataset.BlendedDataset._build_indices",
        OVERRIDDEN,
        "data/datasets/whole_indices.py",
        "its files are not flushed, and are taken for whole after a power failure",
    ),
    Entry(
        "megatron.core.datasets.gpt_dataset.GPTDataset._get_num_tokens_per_epoch",
        READ,
        "data/datasets/passes.py",
        "the tokens of one pass",
    ),
    Entry(
        "megatron.core.datasets.gpt_dataset.GPTDataset._get_num_epochs",
        READ,
        "data/datasets/passes.py",
        "the passes that the wanted sequences take",
    ),
    Entry(
        "megatron.training.initialize._initialize_distributed",
        READ,
        "training/engine/launch.py",
        "the process groups are needed before pretrain(), which makes them",
    ),
    Entry(
        "megatron.training.models.gpt.GPTModelBuilder._model_config",
        READ,
        "training/model.py",
        "the builder of the student builds the teacher beside it from the same configuration",
    ),
    Entry(
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        READ,
        "conversion/megatron_writer.py",
        "a checkpoint's index says with it where each tensor lies",
    ),
    Entry(
        "torch.distributed.checkpoint.utils._create_file_view",
        READ,
        "conversion/megatron_reader.py",
        "reads one tensor out of a checkpoint's file",
    ),
    Entry(
        "torch._C.PyTorchFileReader",
        READ,
        "conversion/inert_pickle.py",
        "opens a file of torch.save() without running its pickle",
    ),
    Entry(
        "torch._dynamo.config.disable",
        READ,
        "losses/compiled.py",
        "whether the user has switched torch.compile off",
    ),
    Entry(
        "torch._dynamo.mark_dynamic",
        READ,
        "losses/compiled.py",
        "of the losses' tensors only the number of tokens stays open in what is compiled; documented, under this name",
    ),
    Entry(
        "torch._dynamo.exc.TorchDynamoException",
        READ,
        "losses/compiled.py",
        "the loss runs uncompiled where the compiler fails",
    ),
    Entry(
        "torch._dynamo.exc.FailOnRecompileLimitHit",
        READ,
        "losses/compiled.py",
        "the loss runs uncompiled where there are too many shapes to compile for",
    ),
    Entry(
        "torch.utils._device._device_constructors",
        READ,
        "cpu_emulation.py",
        "torch caches which functions make tensors, and must do so before they are replaced",
    ),
    Entry(
        "torch.cuda._lazy_call",
        REPLACED,
        "cpu_emulation.py",
        "the engine seeds the device with it (an entry of cpu_emulation.EMULATED)",
    ),
    Entry(
        "torch.cuda._lazy_init",
        REPLACED,
        "cpu_emulation.py",
        "runs before everything that needs a device (an entry of cpu_emulation.EMULATED)",
    ),
)

_originals: dict[str, Any] = {}
_applied: dict[str, dict[str, Callable[[Any], Any]]] = {}


def change_engine(changes: Iterable[Change]) -> None:
    """Change the engine of this process, in the order of ``REGISTER`` where several changes have one name.

    A change that its owner has applied before, for an earlier run in this process, is replaced and not added to.

    Raises:
        LookupError: a change is not in ``REGISTER``, or the installed engine lacks the name.
    """
    for change in changes:
        order = _owners(change.name)
        if (owner := _path(change.owner)) not in order:
            raise LookupError(f"{change.name} has no entry in {_path(__name__)} for {owner}")
        makers = _applied.setdefault(change.name, {})
        makers[owner] = change.make
        ordered = (makers[owner] for owner in order if owner in makers)
        _assign(change.name, functools.reduce(lambda below, make: make(below), ordered, _original(change.name)))


def restore_engine() -> None:
    """Take back every change of this process, so that the next run applies its own and no others."""
    for name, original in _originals.items():
        _assign(name, original)
    _applied.clear()


def _owners(name: str) -> list[str]:
    return [entry.owner for entry in REGISTER if entry.name == name]


def _path(module: str) -> str:
    return f"{module.removeprefix('megatron_mixcpt.').replace('.', '/')}.py"


def _original(name: str) -> Any:
    if name not in _originals:
        try:
            _originals[name] = pkgutil.resolve_name(name)
        except (AttributeError, ImportError) as error:
            raise LookupError(
                f"the installed engine has no {name}, which {' and '.join(_owners(name))} would change"
            ) from error
    return _originals[name]


def _assign(name: str, value: Any) -> None:
    owner, attribute = name.rsplit(".", 1)
    setattr(pkgutil.resolve_name(owner), attribute, value)


def table() -> str:
    """The register as text, by the module of the engine."""
    lines = []
    for module, entries in itertools.groupby(REGISTER, lambda entry: entry.name.rsplit(".", 1)[0]):
        lines.append(module)
        for entry in entries:
            order = _owners(entry.name)
            place = f" {order.index(entry.owner) + 1} of {len(order)}" if len(order) > 1 else ""
            lines.append(f"  {entry.name.rsplit('.', 1)[1]:<40} {entry.kind + place:<15} {entry.owner}")
            lines.append(f"      {entry.reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
