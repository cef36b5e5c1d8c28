"""The L2 ablation in a pipeline: gradient and value of the distance to the original weights, once per iteration.

loss = NTP + coefficient * ||theta - theta_ori||^2 (Mix-CPT section 3.3). The gradient is local and goes straight into
the gradient buffers, after the forward pass of an iteration's last microbatch: by then the number of tokens is known
that the engine will divide by, and nothing has been reduced yet. The value is the sum over all stages; waiting for it
would stall the pipeline, so it travels on its own and only the last stage, which reports it, waits.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch.distributed as dist
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor

from megatron_mixcpt.distillation.wrapper import StudentTeacherModel
from megatron_mixcpt.losses.l2 import add_l2_gradient


class _Anchored(NamedTuple):
    """A parameter and its original, and whether another rank counts the pair's distance."""

    param: Tensor
    original: Tensor
    is_duplicate: bool


class L2Anchor:
    """Pulls the student towards the weights of the teacher built beside it, which never runs.

    Args:
        coefficient: factor of the squared distance.
        mp_group: the ranks that share one copy of the model, over tensor and pipeline parallelism.
        tp_rank: this rank's place in the tensor parallel group.
        num_chunks: stages of the model on this rank, more than one with an interleaved pipeline.
    """

    def __init__(self, coefficient: float, mp_group: dist.ProcessGroup, *, tp_rank: int, num_chunks: int) -> None:
        self.coefficient = coefficient
        self.mp_group = mp_group
        self.tp_rank = tp_rank
        self.num_chunks = num_chunks
        self._tokens: defaultdict[StudentTeacherModel, float] = defaultdict(float)
        self._microbatches: defaultdict[StudentTeacherModel, int] = defaultdict(int)
        self._distances: list[tuple[dist.Work, Tensor]] = []

    def after_forward(
        self, chunk: StudentTeacherModel, num_tokens: float, num_microbatches: int
    ) -> Callable[[], Tensor] | None:
        """Count a microbatch's forward pass and, if it is the iteration's last, add the gradient of this chunk.

        Args:
            chunk: the stage's model, unwrapped; its parameters' ``main_grad`` are changed in place.
            num_tokens: unmasked tokens of the microbatch on this data and context parallel rank.
            num_microbatches: of the iteration.

        Returns:
            None before the last microbatch; then a function that the last stage alone may call, and which returns
            what this rank adds to the summed loss, a float32 scalar.
        """
        self._tokens[chunk] += num_tokens
        self._microbatches[chunk] += 1
        if self._microbatches[chunk] < num_microbatches:
            return None
        tokens = self._tokens.pop(chunk)
        del self._microbatches[chunk]
        distance = self._add_gradient(chunk, tokens)
        # Over a separate group: the pipeline's next message must not queue behind it.
        self._distances.append((dist.all_reduce(distance, group=self.mp_group, async_op=True), distance))
        if len(self._distances) < self.num_chunks:
            return None
        distances, self._distances = self._distances, []
        return lambda: self._summed_penalty(distances, tokens)

    def _summed_penalty(self, distances: list[tuple[dist.Work, Tensor]], tokens: float) -> Tensor:
        for work, _ in distances:
            work.wait()
        return (self.coefficient * tokens * sum(distance for _, distance in distances)).float()

    def _add_gradient(self, chunk: StudentTeacherModel, tokens: float) -> Tensor:
        """Add this chunk's gradient, summed over ``tokens``; return the squared distance that this rank counts."""
        pairs = list(self._pairs(chunk))
        # Only float16 is scaled; elsewhere the engine's function returns 1, on the device, and reading it would wait.
        scale = chunk.config.grad_scale_func if chunk.config.fp16 else None
        return add_l2_gradient(
            [pair.param.main_grad for pair in pairs],
            [pair.param for pair in pairs],
            [pair.original for pair in pairs],
            coefficient=self.coefficient * tokens * (1.0 if scale is None else float(scale(1.0))),
            is_duplicate=[pair.is_duplicate for pair in pairs],
        )

    def _pairs(self, chunk: StudentTeacherModel) -> Iterator[_Anchored]:
        """Parameters that get a gradient on this rank: the engine adds up the copies of those left out."""
        assert chunk.teacher is not None, "built beside the student wherever weights are anchored"
        originals = dict(chunk.teacher.named_parameters())
        for name, param in chunk.module.named_parameters():
            replica = self.tp_rank > 0 and not getattr(param, "tensor_model_parallel", False)
            if not param_is_not_shared(param):  # the last stage's copy of a tied embedding
                continue
            if replica and getattr(param, "sequence_parallel", False):
                continue
            yield _Anchored(param, originals[name], replica)
