"""Time and memory of converting a large model both ways, beside plainly copying and writing as much, in one run.

    python benchmarks/conversion/streaming.py --layers 40 --folder /scratch/conversion [--ranks 2]

The model folder is sparse (zeros that take no room on disk), of a Llama with hidden size 4096 and 128,256 tokens: 40
layers are 19.55 GB in bfloat16. The folder needs twice that much room; it is emptied at the end. Each conversion is a
separate process (under ``torchrun`` with ``--ranks``); memory is the largest process's peak.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig

from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.conversion.tensor_files.writer import SafetensorsWriter, TensorShape

TOOLS = Path(__file__).parents[2] / "tools"


def main() -> None:
    """Make the model, convert and copy, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40, help="of 0.44 GB each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="where to work; must not exist")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share a conversion")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    source, megatron, back = (args.folder / name for name in ("hf", "megatron", "back"))
    try:
        num_bytes = sparse_model(source, args.layers)
        print(f"{num_bytes / 1e9:.2f} GB, {args.ranks} rank(s)\n{'':<24}{'s':>7}{'GB/s':>7}{'peak GiB':>10}")
        run(
            num_bytes, "convert_from_hf", *tool("convert_from_hf", args.ranks, "--hf-model", source, "--save", megatron)
        )
        run(num_bytes, "cp of the checkpoint", "cp", "-r", megatron, args.folder / "copy")
        shutil.rmtree(args.folder / "copy")
        run(num_bytes, "convert_to_hf", *tool("convert_to_hf", args.ranks, "--load", megatron, "--save", back))
        shutil.rmtree(megatron)
        run(num_bytes, "cp of the export", "cp", "-r", back, args.folder / "copy")
    finally:
        shutil.rmtree(args.folder)


def sparse_model(folder: Path, num_layers: int) -> int:
    """Make the model folder; returns its bytes of weights."""
    folder.mkdir()
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype="bfloat16",
    )
    (folder / "config.json").write_text(config.to_json_string())
    shapes = read_config(folder).hf_shapes()
    tensors = {name: TensorShape(shape, torch.bfloat16) for name, shape in shapes.items()}
    SafetensorsWriter(folder, tensors, max_shard_bytes=5_000_000_000).create()
    return sum(tensor.num_bytes for tensor in tensors.values())


def tool(name: str, ranks: int, *flags: str | Path) -> list[str | Path]:
    """The command line of one of our tools."""
    start = (
        [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    )
    return [*start, TOOLS / f"{name}.py", *flags]


def run(num_bytes: int, label: str, *command: str | Path) -> None:
    """Run a command with what it wrote on disk at the end, and print its line."""
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)  # with the memory of this child alone, and of its children
        subprocess.run(["sync"], check=True)
        seconds = time.perf_counter() - start
        if status:
            errors.seek(0)
            sys.exit(f"{label} failed:\n{errors.read().decode()[-2000:]}")
    print(f"{label:<24}{seconds:>7.1f}{num_bytes / 1e9 / seconds:>7.2f}{usage.ru_maxrss / 2**20:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
