"""The module that the schedule sees: the student, which is trained, and beside it the frozen teacher.

Each pipeline stage runs the teacher's layers without gradients and then the student's. To the engine this is one GPT
model, the student: it alone has parameters, state and a checkpoint. On the last stage a *head* turns both models' last
hidden states into what the loss function gets; the earlier stages hand on both models' hidden states. Continual
pre-training's head is ``MixCPTHead``; a DPO policy and its frozen reference are a student and a teacher to this module.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

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
        teacher: the same stage of the frozen model, or None where it never runs. Its parameters are in none of
            ``parameters()``, the state dictionaries and the gradient buffers.
        head: called on the last stage. It may overwrite the student's tensors: nobody reads them afterwards.
    """

    def __init__(self, student: GPTModel, teacher: GPTModel | None, head: Head) -> None:
        super().__init__(config=student.config)
        self.module = student
        # A module inside a tuple is not registered: nothing that walks this module's tree meets the teacher.
        self._frozen = (teacher, _output_weight(teacher))
        self.output_weight = _output_weight(student)
        self.head = head
        self.vp_stage = student.vp_stage
        self.pg_collection = student.pg_collection

    @property
    def teacher(self) -> GPTModel | None:
        """The frozen teacher's stage, or None."""
        return self._frozen[0]

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None]) -> None:
        """Take what the stage before sent: the student's hidden states [s, b, h], the teacher's attached to them."""
        hidden_states = input_tensor[0] if isinstance(input_tensor, list) else input_tensor
        self.module.set_input_tensor(hidden_states)
        if self.teacher is not None:
            self.teacher.set_input_tensor(attached_teacher(hidden_states))

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
        teacher, teacher_weight = self._frozen
        teacher_output = None
        if runs_teacher and teacher is not None:
            with torch.no_grad():
                teacher_output = teacher(*inputs, **options, output_processor_context=teacher_weight)
        output = self.module(*inputs, **options, output_processor_context=self.output_weight)
        if not self.module.post_process:
            return attach_teacher(output, teacher_output)
        return self.head(output, teacher_output, targets)

    # What follows makes this module's state the student's, as the engine's Float16Module does for what it wraps.

    def state_dict(self, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """The student's state."""
        return self.module.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def state_dict_for_save_checkpoint(self, prefix: str = "", keep_vars: bool = False) -> dict:
        """The student's state, as the engine saves it."""
        return self.module.state_dict_for_save_checkpoint(prefix=prefix, keep_vars=keep_vars)

    def sharded_state_dict(self, prefix: str = "", *args: Any, **kwargs: Any) -> dict:
        """The student's sharded state: the checkpoint is an ordinary GPT checkpoint."""
        return self.module.sharded_state_dict(prefix, *args, **kwargs)

    def load_state_dict(self, state_dict: dict, strict: bool = True) -> Any:
        """Load the student's state."""
        return self.module.load_state_dict(state_dict, strict=strict)


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
