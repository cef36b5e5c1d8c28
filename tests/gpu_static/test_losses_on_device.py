"""Every loss on fake tensors of ``cuda:0``: no tensor elsewhere, nothing that waits for the device."""

import itertools
from collections.abc import Callable
from functools import partial

import torch

from megatron_mixcpt.losses import compiled, dpo, fused_linear, l2
from megatron_mixcpt.losses.fused_linear import Projection
from megatron_mixcpt.objective import Divergence, Objective
from megatron_mixcpt.training.alignment.loss import dpo_loss_func, sft_loss_func
from tests.gpu_static.autograd_by_hand import recorded
from tests.gpu_static.cases import FUNCTIONS, Shape, backward, loss_function, mixcpt, on_fake_device
from tests.gpu_static.fake_h100 import in_own_process, on_device
from tests.gpu_static.watch import Watch

VOCAB_SIZE, HIDDEN = 4096, 64


def cases() -> dict[str, Callable[[], None]]:
    """Name -> what runs one loss forward and backward."""
    found: dict[str, Callable[[], None]] = {"loss function": partial(loss_function, 16, 2)}
    found["loss function with a penalty"] = partial(loss_function, 16, 2, penalty=on_fake_device)
    for direction, temperature, entropy, swap in itertools.product(
        ("reverse", "forward"), (1.0, 2.0), (False, True), ("lssd", "kd")
    ):
        divergence = Divergence(direction=direction, temperature=temperature, teacher_entropy=entropy)
        objective = Objective(distillation=swap, divergence=divergence)
        for vocab_size in (VOCAB_SIZE, VOCAB_SIZE - 96):
            name = f"{swap}, {direction}, temperature {temperature}, entropy {entropy}, {vocab_size}"
            found[name] = partial(mixcpt, Shape(32, VOCAB_SIZE, vocab_size), objective)
    shape = Shape(32, VOCAB_SIZE, VOCAB_SIZE)
    found["no mask, new gradient"] = partial(mixcpt, shape, mask=False, inplace=False)
    found["no teacher"] = partial(mixcpt, shape, teacher=False, mask=False)
    found |= {
        "fused linear": fused,
        "log-probabilities": log_probs,
        "DPO": preference,
        "SFT": fine_tuning,
        "L2": penalty,
    }
    return found


def fused() -> None:
    """In chunks, straight from hidden states."""
    bfloat16 = partial(on_fake_device, dtype=torch.bfloat16)
    student, teacher = (Projection(bfloat16(16, 2, HIDDEN), bfloat16(VOCAB_SIZE, HIDDEN)) for _ in range(2))
    student.weight.requires_grad_()
    with recorded(*FUNCTIONS) as calls:

        def gradient_of_chunk(loss, logits, mask):
            return backward(calls, mask)

        grad, torch.autograd.grad = torch.autograd.grad, gradient_of_chunk
        # The recorded forward runs without gradients; the chunk's own backward is called by hand all the same.
        fused_linear.fused_linear_mixcpt_loss(
            student,
            teacher,
            on_fake_device(16, 2, dtype=torch.int64),
            Objective(),
            tp_group=None,
            loss_mask=on_fake_device(16, 2),
            distill_mask=on_fake_device(16, 2, dtype=torch.bool),
            chunk_tokens=8,
        )
        torch.autograd.grad = grad
        assert len(backward(calls, on_fake_device())) == 2


def log_probs() -> None:
    """Of the labels, for SFT, DPO and scoring."""
    with recorded(*FUNCTIONS) as calls:
        logits, labels = on_fake_device(16, 2, VOCAB_SIZE), on_fake_device(16, 2, dtype=torch.int64)
        dpo.vocab_parallel_log_probs(logits, labels, tp_group=None, inplace=True)
        backward(calls, on_fake_device(32))


def preference() -> None:
    """The loss function of DPO, of all its kinds."""
    for loss_type, smoothing in (("sigmoid", 0.1), ("ipo", 0.0)):
        documents = on_fake_device(2, 16, dtype=torch.int64)
        options = {"beta": 0.1, "loss_type": loss_type, "label_smoothing": smoothing, "sft_coefficient": 0.1}
        output = on_fake_device(16, 2), on_fake_device(16, 2)
        loss, num_pairs, report = dpo_loss_func(documents, 4, None, output, **options)
        assert {part.device.type for part in (loss, num_pairs, *report.values())} == {"cuda"}


def fine_tuning() -> None:
    """The loss function of SFT."""
    loss, num_tokens, report = sft_loss_func(on_fake_device(2, 16), (on_fake_device(16, 2), None))
    assert {part.device.type for part in (loss, num_tokens, *report.values())} == {"cuda"}


def penalty() -> None:
    """The squared distance of the weights and its gradient."""
    bfloat16 = partial(on_fake_device, 128, dtype=torch.bfloat16)
    total = l2.add_l2_gradient([on_fake_device(128)], [bfloat16()], [bfloat16()], coefficient=0.1)
    assert total.device.type == "cuda"


def watched() -> dict[str, Watch]:
    """Each case under its watch, uncompiled."""
    torch._dynamo.config.disable = True
    found = {}
    for name, case in cases().items():
        with on_device() as found[name]:
            case()
    with on_device() as found["uncompiled, 2,048 x 128,256"]:
        mixcpt(Shape(2048, 128_256, 128_256))
    return found


def test_every_loss_stays_on_the_device_and_waits_for_nothing() -> None:
    watches = in_own_process(watched)
    for name, watch in watches.items():
        try:
            watch.check()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    # The product itself adds to the weight's gradient, in each of four chunks, and once to see whether it can.
    assert watches["fused linear"].kernels["addmm"] == 4 + 1
    # In four chunks, which are fit for a GPU; chunks for the cache of a processor took 189,799 operators.
    operators = sum(watches["uncompiled, 2,048 x 128,256"].kernels.values())
    assert compiled._ACCELERATOR.chunk_elements == 2**26 and operators < 1200, operators
