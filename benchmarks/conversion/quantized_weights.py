"""Reading FP8 weights into bfloat16: memory and time beside transformers' own dequantisation, in one run.

    python benchmarks/conversion/quantized_weights.py --layers 12

A random Llama of 24 million weights a layer is written in FP8 with a scale for each block of 128 by 128. One process
reads every tensor of the folder as this package does when it converts, another loads the folder with transformers and
`dequantize`. Printed are seconds, the most memory above that of the imports, and whether both made the same bits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig  # noqa: E402

from megatron_mixcpt.conversion.hf_model_folder import read_config, read_model_folder  # noqa: E402

BLOCK = 128


def main() -> None:
    """Write the folder, read it twice, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="of the model (default 12)")
    parser.add_argument("--read", choices=("ours", "transformers"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read_by(args.read, args.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="quantized_") as folder:
        size = write_model(Path(folder), args.layers)
        print(f"{size / 1e9:.2f} GB in FP8")
        found = {kind: run(kind, Path(folder)) for kind in ("ours", "transformers")}
    for kind, record in found.items():
        print(f"{kind:14} {record['seconds']:6.1f} s  {record['peak'] / 1e9:6.2f} GB at most")
    same = found["ours"]["digest"] == found["transformers"]["digest"]
    print("same bits" if same else "DIFFERENT")
    sys.exit(not same)


def write_model(folder: Path, num_layers: int) -> int:
    """A folder as DeepSeek and Qwen publish theirs; returns the bytes of its weights."""
    sizes = {"hidden_size": 1024, "intermediate_size": 6656, "num_attention_heads": 16, "num_key_value_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=2048, num_hidden_layers=num_layers, architectures=["LlamaForCausalLM"])
    (folder / "config.json").write_text(config.to_json_string())
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, shape in read_config(folder).hf_shapes().items():
        weight = torch.randn(shape, generator=generator) * 0.02
        if ".layers." not in name or len(shape) == 1:
            tensors[name] = weight.bfloat16()
            continue
        blocks = weight.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
        scales = blocks.abs().amax((1, 3)) / 448
        quantized = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name] = quantized.flatten(2, 3).flatten(0, 1)
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "quantization_config": quantization}))
    return sum(tensor.nbytes for tensor in tensors.values())


def run(kind: str, folder: Path) -> dict:
    """Read in a process of its own, whose peak is its own."""
    command = [sys.executable, __file__, "--read", kind, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def read_by(kind: str, folder: Path) -> dict:
    """Seconds, bytes at the most beyond the imports, and a sum of all bits."""
    before, start = most_memory(), time.monotonic()
    digest = 0
    if kind == "ours":
        model = read_model_folder(folder)
        for name in sorted(model.hf_shapes()):
            digest = (digest * 31 + bits_of(model.tensors.read(name))) % 2**61
    else:
        options = {"dtype": torch.bfloat16, "quantization_config": FineGrainedFP8Config(dequantize=True)}
        weights = AutoModelForCausalLM.from_pretrained(folder, **options).state_dict()
        for name in sorted(read_config(folder).hf_shapes()):
            digest = (digest * 31 + bits_of(weights[name])) % 2**61
    seconds = time.monotonic() - start
    return {"seconds": seconds, "peak": most_memory() - before, "digest": digest}


def most_memory() -> int:
    """Bytes that this program had at the most; ``ru_maxrss`` would begin at what its parent had before it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def bits_of(weight: torch.Tensor) -> int:
    """A number that another order or another value of the bits changes."""
    words = weight.contiguous().view(torch.int16).flatten()
    return sum(int((part.long() * torch.arange(1, len(part) + 1)).sum()) for part in words.split(2**20))


if __name__ == "__main__":
    main()
