"""Whether SFT teaches a model to answer and to stop, and DPO to prefer: a tiny random model, in two minutes on a CPU.

    python benchmarks/alignment/learns_to_stop.py --folder /scratch/learns

Six conversations and six pairs of a few words, a Llama of 150 thousand random weights: before training it never writes
the end of a turn; after 250 steps it should answer every prompt word for word and stop. The tools run as users run
them.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.distributed.dense_alignment import END, make_samples, rows  # noqa: E402
from tests.distributed.tiny_models import build_model  # noqa: E402
from tests.distributed.tiny_shape import VOCAB_SIZE  # noqa: E402
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer  # noqa: E402

SFT = "--chat-template zephyr --seq-length 160 --global-batch-size 6 --epochs 250 --lr 3e-3 --log-interval 50".split()
DPO = "--seq-length 256 --global-batch-size 6 --epochs 60 --lr 1e-3 --beta 0.1 --log-interval 20".split()


def main() -> None:
    """Make model and samples, train both stages, print what the model does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to work; must not exist")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    build_model("llama", 0).save_pretrained(folder / "start")
    save_tiny_tokenizer(folder / "start", vocab_size=VOCAB_SIZE)
    make_samples(folder)
    report("before", folder / "start", folder / "sft.jsonl")
    samples, checkpoint = ("--sft", folder / "sft.jsonl"), folder / "sft"
    run(folder, "train_sft", "--hf-model", folder / "start", *samples, "--save", checkpoint, *SFT)
    run(folder, "convert_to_hf", "--load", checkpoint, "--save", folder / "sft-hf")
    report("after SFT", folder / "sft-hf", folder / "sft.jsonl")
    run(folder, "train_dpo", "--load", checkpoint, "--dpo", folder / "dpo.jsonl", "--save", folder / "dpo", *DPO)
    lines = (folder / "train_dpo.log").read_text().splitlines()
    figures = [line.split("|")[5:9] for line in lines if "learning rate:" in line][-1]
    print("after DPO:", ", ".join(figure.strip() for figure in figures))


def run(folder: Path, tool: str, *flags: str | Path) -> None:
    """Run one of our tools, its output in a log."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / f"{tool}.log").open("w") as log:
        command = [sys.executable, ROOT / "tools" / f"{tool}.py", *flags]
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)


def report(label: str, model_folder: Path, samples: Path) -> None:
    """Greedy answers of at most 80 tokens to the prompts of one turn: how many stop, and how many are the sample's."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    conversations = [row["messages"] for row in rows(samples) if len(row["messages"]) == 2]
    num_stopped = num_right = 0
    for question, answer in conversations:
        prompt = f"<|user|>\n{question['content']}{END}\n<|assistant|>\n"
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        options = {"max_new_tokens": 80, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        ids = model.generate(**inputs, eos_token_id=tokenizer.eos_token_id, **options)[0, inputs["input_ids"].size(1) :]
        num_stopped += tokenizer.eos_token_id in ids.tolist()
        num_right += tokenizer.decode(ids) == answer["content"] + END
    print(f"{label}: {num_stopped} of {len(conversations)} stop, {num_right} are word for word right", flush=True)


if __name__ == "__main__":
    main()
