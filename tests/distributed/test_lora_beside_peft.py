"""Adapters that go on from a PEFT folder, against PEFT itself: the first iteration's losses and gradient.

The reference shares nothing with the package but the order of the samples: PEFT's layers beside transformers' model,
and the loss written down from the paper (Eq. 1, 4, 6 and 7), with the base model as the teacher.
"""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from tests.distributed.dense_iteration import first_batch
from tests.distributed.test_lora import PP2, TP2_SP
from tests.distributed.tiny_models import load_model
from tests.distributed.tiny_run import flags, make_world, train

# What the engine joins has one A.
JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
SCALE = 1.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), ["llama"])


@pytest.fixture(scope="module")
def adapted(world: Path) -> PeftModel:
    """The base model with random adapters, saved in the world as ``adapter``."""
    names = [name for group in JOINED for name in group]
    config = LoraConfig(r=4, lora_alpha=4 * SCALE, target_modules=names, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(world / "llama"), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for factors in factors_of(model):
            for a, _ in factors[1:]:
                a.copy_(factors[0][0])
            for _, b in factors:
                b.normal_(std=0.1)
    model.save_pretrained(world / "adapter")
    return model


def factors_of(model: PeftModel) -> list[list[tuple[torch.nn.Parameter, torch.nn.Parameter]]]:
    """A and B of the modules that the engine joins, for each of its modules."""
    parameters = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora_" in name}
    found = []
    for name in (name for name in parameters if name.endswith("lora_A.weight")):
        module = name.split(".lora_A")[0]
        parent, _, leaf = module.rpartition(".")
        for group in (group for group in JOINED if group[0] == leaf):
            keys = [f"{parent}.{member}.lora_" for member in group]
            found.append([(parameters[f"{key}A.weight"], parameters[f"{key}B.weight"]) for key in keys])
    return found


def expected(model: PeftModel, tokens: Tensor) -> dict[str, float]:
    """Losses of tokens [b, s + 1], and the norm of the gradient of what is trained; a joined A has one gradient."""
    label = tokens[:, 1:, None]
    with torch.no_grad(), model.disable_adapter():
        original = model(tokens[:, :-1]).logits.double()
    top = original.argmax(-1, keepdim=True)
    swapped = original.scatter(-1, top, original.gather(-1, label)).scatter(-1, label, original.gather(-1, top))
    log_p, log_q = model(tokens[:, :-1]).logits.double().log_softmax(-1), swapped.log_softmax(-1)
    ntp, lssd = -log_p.gather(-1, label).mean(), (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    loss = 0.8 * ntp + 0.2 * lssd
    model.zero_grad()
    loss.backward()
    gradients = [sum(a.grad for a, _ in factors) for factors in factors_of(model)]
    gradients += [b.grad for factors in factors_of(model) for _, b in factors]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return {"loss": loss.item(), "ntp loss": ntp.item(), "lssd loss": lssd.item(), "grad-norm": norm.item()}


@pytest.mark.parametrize("layout", [TP2_SP, PP2], ids=["TP2+SP", "PP2"])
def test_the_first_iteration_is_that_of_peft(
    layout: list[str], adapted: PeftModel, world: Path, tmp_path: Path
) -> None:
    argv = flags(world, "llama", iterations=1)
    place = argv.index("--teacher")
    argv[place : place + 2] = ["--lora-adapter", str(world / "adapter")]
    curves = train(2, [*argv, *layout], tmp_path)
    for key, value in expected(adapted, first_batch(world)[0]).items():
        assert curves[key][0] == pytest.approx(value, rel=2e-5), key  # float32, other orders of sums
