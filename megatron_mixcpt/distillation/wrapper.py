"""The module that the schedule sees: the student, which is trained, and beside it the frozen teacher.

Each pipeline stage runs the teacher's layers without gradients and then the student's. To the engine this is one GPT
model, the student: it alone has parameters, state and a checkpoint. The last stage turns the two models' logits into
the per-token losses (Mix-CPT Eq. 1, 6 and 7); the earlier ones hand on both models' hidden states.
"""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_mixcpt.distillation.communicator import attach_teacher, attached_teacher
from megatron_mixcpt.losses.lssd import MixCPTLoss, vocab_parallel_mixcpt_loss


class MixCPTModel(MegatronModule):
    """One pipeline stage of the student, with the teacher's stage out of the engine's sight.

    Args:
        student: the stage that is trained.
        teacher: the same stage of the frozen model, or None where no sample is distilled. Its parameters are in none
            of ``parameters()``, the state dictionaries and the gradient buffers.
        alpha: weight of next-token prediction (Eq. 7).
        swap: whether the teacher's top-1 and ground-truth logits are exchanged (Eq. 4).
        vocab_size: number of true vocabulary columns; what tensor parallelism pads beyond gets no probability.
    """

    def __init__(
        self, student: GPTModel, teacher: GPTModel | None, *, alpha: float, swap: bool, vocab_size: int
    ) -> None:
        super().__init__(config=student.config)
        self.module = student
        # A module inside a tuple is not registered: nothing that walks this module's tree meets the teacher.
        self._frozen = (teacher,)
        self.alpha = alpha
        self.swap = swap
        self.vocab_size = vocab_size
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
        labels: Tensor,
        distill_mask: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Run both models over one microbatch.

        Args:
            input_ids: int64 [b, s].
            position_ids: int64 [b, s].
            attention_mask: bool [b, 1, s, s], True where attention is forbidden, or None for causal attention.
            labels: int64 [b, s], the next tokens.
            distill_mask: bool [b, s], which tokens are distilled. None runs no teacher.
            packed_seq_params: document boundaries, for attention kernels that take them.

        Returns:
            On the last stage the fields of :class:`MixCPTLoss`, each [s, b]; before it the student's hidden states
            [s, b, h] (s / tp with sequence parallelism) with the teacher's attached.
        """
        inputs = (input_ids, position_ids, attention_mask)
        teacher_output = None
        if distill_mask is not None and self.teacher is not None:
            with torch.no_grad():
                teacher_output = self.teacher(
                    *inputs, packed_seq_params=packed_seq_params, output_processor=_vocab_parallel_logits
                )
        output = self.module(
            *inputs,
            labels=labels,
            packed_seq_params=packed_seq_params,
            output_processor=self._losses,
            output_processor_context=(teacher_output, distill_mask),
        )
        return output if self.module.post_process else attach_teacher(output, teacher_output)

    def _losses(self, *, labels: Tensor, context: tuple, **head: Any) -> tuple[Tensor, ...]:
        """The engine's ``output_processor``: the student's last hidden states to the losses [s, b]."""
        teacher_logits, distill_mask = context
        losses: MixCPTLoss = vocab_parallel_mixcpt_loss(
            _vocab_parallel_logits(**head),
            teacher_logits,
            labels.transpose(0, 1).contiguous(),
            alpha=self.alpha,
            tp_group=self.pg_collection.tp,
            swap=self.swap,
            inplace=True,  # nobody reads the logits again: their memory takes the gradient
            vocab_size=self.vocab_size,
            distill_mask=None if distill_mask is None else distill_mask.transpose(0, 1),
        )
        return tuple(losses)

    # What follows makes this module's state the student's, as the engine's Float16Module does for what it wraps.

    def state_dict(self, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """The student's state."""
        return self.module.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def state_dict_for_save_checkpoint(self, prefix: str = "", keep_vars: bool = False) -> dict:
        """The student's state, as the engine saves it."""
        return self.module.state_dict_for_save_checkpoint(prefix=prefix, keep_vars=keep_vars)

    def sharded_state_dict(self, prefix: str = "", *args: Any, **kwargs: Any) -> dict:
        """The student's sharded state: a Mix-CPT checkpoint is an ordinary GPT checkpoint."""
        return self.module.sharded_state_dict(prefix, *args, **kwargs)

    def load_state_dict(self, state_dict: dict, strict: bool = True) -> Any:
        """Load the student's state."""
        return self.module.load_state_dict(state_dict, strict=strict)


def _vocab_parallel_logits(
    *, hidden_states: Tensor, output_layer: torch.nn.Module, output_weight: Tensor | None, **_: Any
) -> Tensor:
    """The head, as an ``output_processor``: hidden states [s, b, h] to this rank's logits [s, b, v/tp]."""
    logits, _bias = output_layer(hidden_states, weight=output_weight)
    return logits
