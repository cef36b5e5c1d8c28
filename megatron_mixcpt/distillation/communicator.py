"""Carries the teacher's activations between pipeline stages in the message that carries the student's.

The engine's schedules pass one tensor per microbatch and direction, and build its backward from it. Here the forward
message is [2, s, b, h]: the student's hidden states, then the teacher's. Autograd and the schedule only ever see the
student's half; the teacher's rides along as an attribute of that tensor, so it needs no separate bookkeeping in any
schedule, and gradients travel back for the student alone, at the plain size.
"""

import copy

from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator, Shape
from torch import Tensor
from torch.distributed import ProcessGroup

_TEACHER = "teacher_hidden_states"


def attach_teacher(student: Tensor, teacher: Tensor | None) -> Tensor:
    """Hang the teacher's hidden states [s, b, h] on the student's tensor, which is changed in place and returned."""
    setattr(student, _TEACHER, teacher)
    return student


def attached_teacher(student: Tensor | None) -> Tensor | None:
    """The teacher's hidden states [s, b, h] that came with the student's, or None."""
    return getattr(student, _TEACHER, None)


class DistillationP2PCommunicator(P2PCommunicator):
    """The engine's point-to-point communicator, with forward messages of student and teacher stacked.

    Every message has both halves, also when a microbatch runs no teacher (its half is then left unset): the receiver
    must know the shape beforehand, and only the sender knows the microbatch.

    Args:
        pp_group: the pipeline parallel group.
        config: the model's configuration. A copy is kept, which asks the base class for the two directions' shapes.
    """

    def __init__(self, pp_group: ProcessGroup, config: ModelParallelConfig) -> None:
        config = copy.copy(config)
        # The base class has one shape for both directions unless shapes vary; then it asks _communicate_shapes.
        config.variable_seq_lengths = True
        super().__init__(pp_group, config)
        self._shape: Shape | None = None

    def _communicate_shapes(self, tensor_send_next, tensor_send_prev, recv_prev, recv_next):
        """Both shapes are known on both sides: nothing is sent. Returns those of the forward and backward message."""
        return (2, *self._shape) if recv_prev else None, self._shape

    def _communicate(self, *, tensor_send_next: Tensor | None, tensor_shape: Shape | None, **kwargs):
        """As the base class, which sends and receives ``tensor_send_next`` and the tensor before as [2, s, b, h]."""
        self._shape = tensor_shape
        message = None if tensor_send_next is None else _pack(tensor_send_next)
        received, gradient, requests = super()._communicate(
            tensor_send_next=message, tensor_shape=tensor_shape, **kwargs
        )
        return None if received is None else _unpack(received), gradient, requests


def _pack(student: Tensor) -> Tensor:
    """Copy both halves into one message and let go of the teacher's, which nobody needs after this."""
    teacher = attached_teacher(student)
    message = student.new_empty((2, *student.shape))
    message[0].copy_(student.detach())
    if teacher is not None:
        message[1].copy_(teacher)
        attach_teacher(student, None)
    return message


def _unpack(message: Tensor) -> Tensor:
    """Views of a message that may still be on its way: the student's half as a leaf, the teacher's attached."""
    student, teacher = message.detach().unbind(0)
    return attach_teacher(student.requires_grad_(), teacher)
