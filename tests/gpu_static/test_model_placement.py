"""Student and teacher on a GPU, shown without one: on fake tensors their forward stays on the device and never waits.

The engine's own layers run (those without Transformer Engine), with the heads and the loss functions of the three
trainers, in one stage and in two. Backward is not shown: autograd's engine needs a driver.
"""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from tests.gpu_static.fake_h100 import in_own_process, on_device

ROWS, LENGTH, VOCABULARY = 2, 128, 4096
DPO = {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.1, "sft_coefficient": 0.1}


@pytest.fixture(scope="module")
def watches() -> dict[str, Any]:
    """What was seen of each forward, from one process, which has the engine to start."""
    return in_own_process(every_forward, environment={"TORCH_COMPILE_DISABLE": "1"})


@pytest.mark.parametrize(
    "forward",
    [
        "bfloat16",
        "bfloat16, documents",
        "float32, documents",
        "chunks",
        "chunks, documents",
        "two stages",
        "SFT",
        "DPO",
    ],
)
def test_forward_stays_on_the_device_and_never_waits(watches: dict[str, Any], forward: str) -> None:
    watches[forward].check()


def every_forward() -> dict[str, Any]:
    """Of the three trainers; packed rows of SFT and DPO have the mask of documents, too."""
    start_engine()
    return {
        "bfloat16": pretraining("bfloat16", masked=False),
        "bfloat16, documents": pretraining("bfloat16", masked=True),
        "float32, documents": pretraining("float32", masked=True),
        "chunks": pretraining("bfloat16", masked=False, chunk_tokens=64),
        "chunks, documents": pretraining("bfloat16", masked=True, chunk_tokens=64),
        "two stages": two_stages(),
        "SFT": alignment(sft_loss, runs_reference=False),
        "DPO": alignment(dpo_loss, runs_reference=True),
    }


def pretraining(dtype: str, *, masked: bool, chunk_tokens: int = 0) -> Any:
    """Continual pre-training, the loss from all logits or in chunks.

    In chunks the loss computes its gradient with its value, by autograd, which needs a driver: here the value alone.
    """
    import torch
    from megatron.core import parallel_state

    from megatron_mixcpt.distillation.mixcpt_head import MixCPTHead, MixCPTTargets
    from megatron_mixcpt.objective import Objective
    from megatron_mixcpt.training.batch import document_mask
    from megatron_mixcpt.training.pretraining.loss import mixcpt_loss_func

    objective = Objective()
    with on_device() as watch, torch.no_grad() if chunk_tokens else nullcontext():
        tp_group = parallel_state.get_tensor_model_parallel_group()
        model = student_and_teacher(dtype, MixCPTHead(objective, VOCABULARY, tp_group, chunk_tokens=chunk_tokens))
        tokens, loss_mask = integers(ROWS, LENGTH), numbers(ROWS, LENGTH)
        distill_mask, boundaries = integers(ROWS).bool().unsqueeze(1).expand(ROWS, LENGTH), integers(ROWS, 4)
        mask = document_mask(boundaries, LENGTH, getattr(torch, dtype)) if masked else None
        targets = MixCPTTargets(tokens, loss_mask, distill_mask, measures_teacher=True)
        output = model(tokens, tokens, mask, targets=targets, runs_teacher=True)
        options = {"objective": objective, "kinds": ("cpt", "sft"), "kind": integers(ROWS)}
        loss, num_tokens, report = mixcpt_loss_func(loss_mask, distill_mask, output, **options)
        watch.check(loss, num_tokens, *report.values(), *weights(model), mask)
    return watch


def sft_loss(loss_mask: Any, output: Any) -> Any:
    from megatron_mixcpt.training.alignment.loss import sft_loss_func

    return sft_loss_func(loss_mask, output)


def dpo_loss(loss_mask: Any, output: Any) -> Any:
    from megatron_mixcpt.training.alignment.loss import dpo_loss_func

    return dpo_loss_func(integers(ROWS, LENGTH), 4, None, output, **DPO)


def alignment(loss_func: Callable, *, runs_reference: bool) -> Any:
    """Format alignment: the policy, and where it runs the reference."""
    import torch
    from megatron.core import parallel_state

    from megatron_mixcpt.distillation.log_probs_head import AlignmentTargets, LogProbsHead
    from megatron_mixcpt.training.batch import document_mask

    with on_device() as watch:
        head = LogProbsHead(VOCABULARY, parallel_state.get_tensor_model_parallel_group())
        model = student_and_teacher("bfloat16", head)
        tokens, loss_mask = integers(ROWS, LENGTH), numbers(ROWS, LENGTH)
        mask = document_mask(integers(ROWS, 4), LENGTH, torch.bfloat16)
        output = model(tokens, tokens, mask, targets=AlignmentTargets(tokens, loss_mask), runs_teacher=runs_reference)
        loss, count, report = loss_func(loss_mask, output)
        watch.check(loss, count, *report.values(), *weights(model))
    return watch


def two_stages() -> Any:
    """The first stage's output in one message, what the second makes of it, and the engine's release of the output."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.schedules import deallocate_output_tensor

    from megatron_mixcpt.distillation import communicator
    from megatron_mixcpt.distillation.mixcpt_head import MixCPTHead, MixCPTTargets
    from megatron_mixcpt.objective import Objective

    with on_device() as watch:
        tokens = integers(ROWS, LENGTH)
        first = student_and_teacher("bfloat16", None, pre_process=True, post_process=False)
        sent = first(tokens, tokens, None, targets=None, runs_teacher=True)
        message = communicator._pack(sent)
        deallocate_output_tensor(sent, True)
        received = communicator._unpack(message)
        assert message.shape == (2, LENGTH, ROWS, 256) and received.is_leaf and received.requires_grad
        assert sent.grad_fn is not None and communicator.attached_teacher(sent) is None
        head = MixCPTHead(Objective(), VOCABULARY, parallel_state.get_tensor_model_parallel_group())
        last = student_and_teacher("bfloat16", head, pre_process=False, post_process=True)
        last.set_input_tensor([received])
        targets = MixCPTTargets(tokens, numbers(ROWS, LENGTH), integers(ROWS, LENGTH).to(torch.bool))
        losses = last(tokens, tokens, None, targets=targets, runs_teacher=True)
        watch.check(message, received, losses.loss_sum, losses.tokens.ntp, losses.tokens.lssd)
    return watch


def start_engine() -> None:
    """One rank, and the engine's parallel groups."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    rendezvous = f"file://{tempfile.mkdtemp()}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()


def student_and_teacher(dtype: str, head: Any, *, pre_process: bool = True, post_process: bool = True) -> Any:
    """A Llama of two layers with grouped queries, twice."""
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.distillation.wrapper import StudentTeacherModel
    from megatron_mixcpt.models.layer_specs import gpt_layer_spec

    config = TransformerConfig(
        num_layers=2,
        hidden_size=256,
        ffn_hidden_size=512,
        num_attention_heads=4,
        num_query_groups=2,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=getattr(torch, dtype),
        bf16=dtype == "bfloat16",
        pipeline_dtype=getattr(torch, dtype),
        perform_initialization=False,
        transformer_impl="local",
        bias_dropout_fusion=False,
        deallocate_pipeline_outputs=True,
    )
    student, teacher = (
        GPTModel(
            config=config,
            transformer_layer_spec=gpt_layer_spec(config),
            vocab_size=VOCABULARY,
            max_sequence_length=LENGTH,
            pre_process=pre_process,
            post_process=post_process,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
            parallel_output=True,
        )
        for _ in range(2)
    )
    return StudentTeacherModel(student, teacher.requires_grad_(False).eval(), head)


def weights(model: Any) -> list[Any]:
    """Parameters and buffers of both models."""
    return [tensor for one in (model.module, model.teacher) for tensor in (*one.parameters(), *one.buffers())]


def integers(*shape: int) -> Any:
    import torch

    return torch.empty(shape, dtype=torch.int64, device="cuda")


def numbers(*shape: int) -> Any:
    import torch

    return torch.empty(shape, dtype=torch.float32, device="cuda")
