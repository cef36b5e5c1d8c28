"""What the checks train and run: random models of published shapes, and a tiny world whose every bit is known.

Random models are shared by the checks of one call, in its work folder. The tiny world's weights are drawn by NumPy, so
that they do not depend on the versions of torch and transformers; a digest of them goes with the recorded curves.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu import device
from benchmarks.gpu.context import Context, ModelSize
from benchmarks.step.world import make_world
from tests.distributed.dense_alignment import make_samples
from tests.distributed.tiny_models import LLAMA3_ROPE
from tests.distributed.tiny_run import make_mixture
from tests.distributed.tiny_shape import VOCAB_SIZE

# Heads of 64 columns, and every size a multiple of 16: Transformer Engine's kernels take them, in 8 bits too.
TINY_MODEL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 0,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "rope_scaling": LLAMA3_ROPE,
    "tie_word_embeddings": False,
}
TOKENIZER = Path(__file__).with_name("tiny_tokenizer.json")


def random_world(context: Context, size: ModelSize, name: str) -> tuple[Path, Path]:
    """A random model of this size and a mixture for it: the folders ``model`` and ``mixture``, made once."""
    folder = context.work / f"world-{name}"
    if not (folder / "mixture" / "mixture.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_world(
            folder,
            hidden_size=size.hidden_size,
            num_layers=size.num_layers,
            vocab_size=size.vocab_size,
            intermediate_size=size.intermediate_size,
            num_heads=size.num_heads,
            num_kv_heads=size.num_kv_heads,
            device=device.placement(),
        )
    return folder / "model", folder / "mixture"


def tiny_world(context: Context) -> Path:
    """The folders ``model``, ``teacher`` and ``mixture``, and the files ``sft.jsonl`` and ``dpo.jsonl``."""
    return make_tiny_world(context.work / "world-tiny")


def make_tiny_world(folder: Path) -> Path:
    """Make the tiny world in ``folder`` unless it is there; returns it."""
    if not (folder / "dpo.jsonl").exists():
        for seed, name in enumerate(("model", "teacher")):
            _make_model(folder / name, seed)
        make_mixture(folder / "mixture", folder / "model")
        make_samples(folder)
    return folder


def digest(world: Path) -> str:
    """Of all that the recorded curves depend on: the weights' numbers, the mixture's and the samples' bytes."""
    from safetensors.torch import load_file

    whole = hashlib.sha256()
    for name in ("model", "teacher"):
        for key, tensor in sorted(load_file(world / name / "model.safetensors").items()):
            whole.update(key.encode() + tensor.numpy().tobytes())
    for path in (*sorted(world.glob("mixture/*.bin")), *sorted(world.glob("*.jsonl")), world / "model/tokenizer.json"):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _make_model(folder: Path, seed: int) -> None:
    """A Llama with Llama 3's rotary scaling, every parameter random, norms too, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**TINY_MODEL)).float()
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.from_numpy(random.standard_normal(parameter.shape, dtype=np.float32))
            # Logits of a standard deviation of 4: probabilities as uneven as a trained model's.
            scale = (4 if name == "lm_head.weight" else 1) / parameter.shape[-1] ** 0.5
            parameter.copy_(1 + 0.1 * drawn if parameter.dim() == 1 else scale * drawn)
    model.save_pretrained(folder)
    # Carried along: a tokenizer trained here would depend on the version of its library.
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}), encoding="utf-8")
