"""The router's auxiliary losses: values and gradients, each microbatch's weight, padding, recomputation."""

from types import SimpleNamespace

from megatron_mixcpt.testing import run_distributed

COEFFICIENT, Z_COEFFICIENT = 0.1, 0.01
WEIGHTS = (3.0, 5.0)


def test_router() -> None:
    run_distributed(check_router, 2, cpu_emulation=True)


def check_router() -> None:
    """On two ranks that share each sequence, as tensor parallel ranks do."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(2)
    model_parallel_cuda_manual_seed(1)
    check_values_and_gradients()
    check_only_training_has_them()
    check_biases_stay_in_float32()


def world(kind: str = "aux_loss") -> SimpleNamespace:
    """A router of 5 experts, 2 chosen, and two microbatches [s = 8, b = 2, h = 16], the second half padding."""
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.models.router import Router

    config = TransformerConfig(
        num_layers=3,
        hidden_size=16,
        num_attention_heads=2,
        num_moe_experts=5,
        moe_router_topk=2,
        moe_router_load_balancing_type=kind,
        moe_aux_loss_coeff=COEFFICIENT,
        moe_z_loss_coeff=Z_COEFFICIENT,
        add_bias_linear=False,
        tensor_model_parallel_size=2,
        sequence_parallel=True,
        calculate_per_token_loss=True,
    )
    router = Router(config, ProcessGroupCollection.use_mpu_process_groups())
    router.set_layer_number(2)
    torch.manual_seed(7)
    with torch.no_grad():
        router.weight.normal_()
    inputs = [torch.randn(8, 2, 16) for _ in WEIGHTS]
    padding = torch.zeros(8, 2, dtype=torch.bool)
    padding[5:, 0] = padding[2:, 1] = True
    return SimpleNamespace(router=router, inputs=inputs, padding=[None, padding])


def shares(tensor):
    """This rank's half of a sequence [s, ...]."""
    import torch.distributed as dist

    return None if tensor is None else tensor.chunk(2)[dist.get_rank()]


def expected(case: SimpleNamespace):
    """Dense, over whole sequences: gradient of the router's weight, and the weighted means of both losses."""
    import torch

    weight, totals = case.router.weight.detach().clone().requires_grad_(), [0.0, 0.0]
    for inputs, padding, times in zip(case.inputs, case.padding, WEIGHTS, strict=True):
        rows = inputs.flatten(0, 1) if padding is None else inputs[~padding]
        logits = rows @ weight.T
        chosen = torch.zeros_like(logits).scatter(1, logits.topk(2).indices, 1.0)
        balance = 5 * (chosen.mean(0) / 2 * logits.softmax(1).mean(0)).sum()
        for place, value in enumerate((balance, logits.logsumexp(1).square().mean())):
            totals[place] += times * value
    (COEFFICIENT * totals[0] + Z_COEFFICIENT * totals[1]).backward()
    return weight.grad, [(total / sum(WEIGHTS)).item() for total in totals]


def started():
    import torch

    from megatron_mixcpt.log_names import LOAD_BALANCING_LOSS, ROUTER_Z_LOSS
    from megatron_mixcpt.models.auxiliary_losses import AUXILIARY_LOSSES

    AUXILIARY_LOSSES.start([LOAD_BALANCING_LOSS, ROUTER_Z_LOSS], 3, None, torch.device("cpu"))
    return AUXILIARY_LOSSES


def check_values_and_gradients() -> None:
    import pytest
    import torch
    import torch.distributed as dist
    from torch.utils.checkpoint import checkpoint

    from megatron_mixcpt.models.auxiliary_losses import Microbatch

    for recomputes in (False, True):
        case, losses = world(), started()
        gradient, values = expected(case)
        kept = []
        for inputs, padding, times in zip(case.inputs, case.padding, WEIGHTS, strict=True):
            losses.microbatch = Microbatch(times, shares(padding))
            if recomputes:
                given = shares(inputs).clone().requires_grad_()
                kept.append(checkpoint(case.router, given, use_reentrant=True)[0])
            else:
                kept.append(case.router(shares(inputs))[0])
        losses.microbatch = Microbatch(1e6, None)  # of another microbatch, which has begun before their backward passes
        for probabilities in kept:
            (0.0 * probabilities.sum()).backward()
        dist.all_reduce(case.router.weight.grad)
        torch.testing.assert_close(case.router.weight.grad, gradient, rtol=1e-4, atol=1e-5)
        log: dict[str, torch.Tensor] = {}
        losses.report(1.0, 1, total_loss_dict=log, num_layers=3)
        assert [value.item() for value in log.values()] == pytest.approx(values, rel=1e-5)
        assert losses.take()["router z loss"].isnan().all(), "a report begins anew"


def check_only_training_has_them() -> None:
    """A validation, which is in evaluation mode, and a frozen teacher add nothing, and see no noise on their input."""
    import torch

    case, losses = world(), started()
    case.router.config.moe_input_jitter_eps = 0.5
    case.router.eval()
    assert torch.equal(case.router(shares(case.inputs[0]))[0], case.router(shares(case.inputs[0]))[0])
    assert all(layers.isnan().all() for layers in losses.take().values())
    case.router.train()
    assert not torch.equal(case.router(shares(case.inputs[0]))[0], case.router(shares(case.inputs[0]))[0])


def check_biases_stay_in_float32() -> None:
    """A model in bfloat16 is filled with the biases of its routers as they are, and no step adjusts these."""
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.conversion.load import live_tensors
    from megatron_mixcpt.models.router import Router

    sizes = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_moe_experts": 5}
    biased = {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True}
    config = TransformerConfig(
        **sizes, **biased, add_bias_linear=False, tensor_model_parallel_size=2, sequence_parallel=True
    )
    router = Router(config, ProcessGroupCollection.use_mpu_process_groups()).bfloat16()
    tensors = dict(live_tensors(router))
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    assert dtypes == {"weight": torch.bfloat16, "expert_bias": torch.float32}
    assert tensors["expert_bias"].data_ptr() == router.expert_bias.data_ptr() and router.frozen_expert_bias
