"""The module that the schedule sees: the student, which is trained, and beside it the frozen teacher.

Each pipeline stage runs the teacher's layers without gradients and then the student's. To the engine this is one GPT
model, the student: it alone has parameters, state and a checkpoint. Where the student is a frozen model with adapters,
they alone are trained and saved, and the teacher may be the same model with its adapters off. On the last stage a
*head* turns both models' last hidden states into what the loss function gets; the earlier stages hand on both models'
hidden states. Continual pre-training's head is ``MixCPTHead``; a DPO policy and its frozen reference are a student and
a teacher to this module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_mixcpt.adapters.attached import Adapters
from megatron_mixcpt.distillation.communicator import attach_teacher, attached_teacher
from megatron_mixcpt.losses.logit_scaling import UNSCALED, LogitScaling
from megatron_mixcpt.models.options import options_of


class OutputWeight(torch.nn.Module):
    """A model's output weight as a module of its own: calling it is how to read the weight without running its layer.

    With ``--overlap-param-gather`` the engine's data parallel wrapper gathers the parameters bucket by bucket, and
    waits for a bucket in forward pre-hooks of the modules that hold its parameters. A weight that is taken from the
    output layer without a call of the layer is read before its gather has arrived, and the next gather of the bucket
    fails. This module holds the same parameter object, so that it has the hook too, and adds no parameter.
    """

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        """The weight [v / tp, h]."""
        return self.weight


class LastStage(NamedTuple):
    """What a head gets of one model."""

    hidden_states: Tensor
    """[s, b, h]; [s / tp, b, h] with sequence parallelism."""
    output_layer: torch.nn.Module
    """The engine's column-parallel layer."""
    output_weight: Tensor | None
    """The embedding's weight [v / tp, h] where the two are tied; None: the layer has its own."""
    weight: OutputWeight
    """Gives the output weight when it is called, for a head that does without :meth:`products`."""
    scaling: LogitScaling = UNSCALED
    """What the model makes of the output layer's products, so that they are its logits."""

    def products(self) -> Tensor:
        """What the output layer makes of the hidden states, this rank's part [s, b, v / tp]: logits before scaling."""
        products, _bias = self.output_layer(self.hidden_states, weight=self.output_weight)
        return products


Head = Callable[[LastStage, LastStage | None, Any], tuple[Tensor, ...]]
"""Of the student, of the teacher (None where it does not run) and of ``targets``: what the loss function gets."""


class StudentTeacherModel(MegatronModule):
    """One pipeline stage of the student, with the teacher's stage out of the engine's sight.

    Args:
        student: the stage that is trained.
        teacher: the same stage of the frozen model, or None where it never runs or is the student without adapters.
            Its parameters are in none of ``parameters()``, the state dictionaries and the gradient buffers.
        head: called on the last stage. It may overwrite the student's tensors: nobody reads them afterwards.
        adapters: of the student, whose own weights are then frozen; None: all of it is trained.
        teaches_itself: whether the student with its adapters off is the teacher.
    """

    def __init__(
        self,
        student: GPTModel,
        teacher: GPTModel | None,
        head: Head,
        adapters: Adapters | None = None,
        *,
        teaches_itself: bool = False,
    ) -> None:
        super().__init__(config=student.config)
        self.module = student
        self.adapters = adapters
        self.output_weight = _output_weight(student)
        # A module inside a tuple is not registered: nothing that walks this module's tree meets the teacher.
        self._frozen = (teacher, self.output_weight if teaches_itself else _output_weight(teacher))
        self._teaches_itself = teaches_itself
        self._received: Tensor | None = None
        self.head = head
        self.vp_stage = student.vp_stage
        self.pg_collection = student.pg_collection

    @property
    def teacher(self) -> GPTModel | None:
        """The frozen teacher's stage; None where there is none beside the student."""
        return self._frozen[0]

    @property
    def trained(self) -> torch.nn.Module:
        """What is trained, and all that a checkpoint holds of the model: the student, or its adapters."""
        return self.module if self.adapters is None else self.adapters

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None]) -> None:
        """Take what the stage before sent: the student's hidden states [s, b, h], the teacher's attached to them."""
        self._received = input_tensor[0] if isinstance(input_tensor, list) else input_tensor

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        targets: Any,
        runs_teacher: bool,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Run the student, and the teacher if there is one and it is asked to, over one microbatch.

        Args:
            input_ids: int64 [b, s].
            position_ids: int64 [b, s].
            attention_mask: [b, 1, s, s], as the layers' attention takes it, or None for causal attention.
            targets: handed to the head as it is.
            runs_teacher: False: the head gets None for the teacher, and nothing is spent on it.
            packed_seq_params: document boundaries, for attention kernels that take them.

        Returns:
            On the last stage what the head returns; before it the student's hidden states [s, b, h] (s / tp with
            sequence parallelism) with the teacher's attached.
        """
        inputs = (input_ids, position_ids, attention_mask)
        options = {"packed_seq_params": packed_seq_params, "output_processor": _last_stage}
        received, self._received = self._received, None
        teacher_output = self._run_teacher(attached_teacher(received), *inputs, **options) if runs_teacher else None
        self.module.set_input_tensor(received)
        output = self.module(*inputs, **options, output_processor_context=self.output_weight)
        if not self.module.post_process:
            return attach_teacher(output, teacher_output)
        return self.head(output, teacher_output, targets)

    def _run_teacher(self, received: Tensor | None, *inputs: Tensor | None, **options: Any) -> Any:
        """The teacher's output of this stage; None where there is no teacher."""
        teacher, weight = self._frozen
        if teacher is None and not self._teaches_itself:
            return None
        with torch.no_grad(), self._as_teacher() as teacher:
            teacher.set_input_tensor(received)
            return teacher(*inputs, **options, output_processor_context=weight)

    @contextmanager
    def _as_teacher(self) -> Iterator[GPTModel]:
        """The teacher; the student without adapters and, as every teacher is, without dropout and recomputation."""
        if not self._teaches_itself:
            yield self._frozen[0]
            return
        assert self.adapters is not None
        was_training = self.module.training
        self.module.eval()
        try:
            with self.adapters.off():
                yield self.module
        finally:
            self.module.train(was_training)

    # What follows makes this module's state that of what is trained, as the engine's Float16Module does for what it
    # wraps.

    def state_dict(self, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """The state of what is trained."""
        return self.trained.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def state_dict_for_save_checkpoint(self, prefix: str = "", keep_vars: bool = False) -> dict:
        """The state of what is trained, as the engine saves it."""
        if self.adapters is not None:
            return self.adapters.state_dict(prefix=prefix, keep_vars=keep_vars)
        return self.module.state_dict_for_save_checkpoint(prefix=prefix, keep_vars=keep_vars)

    def sharded_state_dict(self, prefix: str = "", *args: Any, **kwargs: Any) -> dict:
        """The sharded state of what is trained: an ordinary GPT checkpoint, or one of adapters."""
        return self.trained.sharded_state_dict(prefix, *args, **kwargs)

    def load_state_dict(self, state_dict: dict, strict: bool = True) -> Any:
        """Load the state of what is trained."""
        return self.trained.load_state_dict(state_dict, strict=strict)


def _output_weight(model: GPTModel | None) -> OutputWeight | None:
    if model is None or not model.post_process:
        return None
    tied = model.share_embeddings_and_output_weights
    return OutputWeight(model.shared_embedding_or_output_weight() if tied else model.output_layer.weight)


def _last_stage(
    *,
    hidden_states: Tensor,
    output_layer: torch.nn.Module,
    output_weight: Tensor | None,
    context: OutputWeight,
    config: TransformerConfig,
    **_: Any,
) -> LastStage:
    """The engine's ``output_processor``: what a head needs, instead of logits."""
    options = options_of(config)
    scaling = LogitScaling(options.logit_multiplier, options.final_softcap)
    return LastStage(hidden_states, output_layer, output_weight, context, scaling)
