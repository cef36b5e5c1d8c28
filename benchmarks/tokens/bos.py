"""What a beginning of sequence before each document does: a tiny Llama trained with one, or without, on a CPU.

    python benchmarks/tokens/bos.py [--steps 400] [--more-steps 120]

Llama 3 was trained with <|begin_of_text|> before every document and <|end_of_text|> after it. Two models are trained on
docstrings of this Python installation, one so and one with the end alone. Both are then measured on docstrings held
out, each document after the beginning, after the end, and after both; and the first is trained further on functions of
the standard library, with and without the beginning. Figures are nats a token, over whole documents and over their
first eight tokens. Takes about five minutes on one core.
"""

import argparse
import ast
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

BOS, EOS = 0, 1
LENGTH, BATCH, FIRST = 128, 16, 8
STARTS = {"BOS": [BOS], "EOS": [EOS], "EOS BOS": [EOS, BOS]}
Documents = list[list[int]]


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of the first training")
    parser.add_argument("--more-steps", type=int, default=120, help="of the training on functions")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    prose, code = texts()
    tokenizer = make_tokenizer(prose)
    general, domain = ([tokenizer.encode(text).ids for text in kind] for kind in (prose, code))
    held_out = {"docstrings": general[:100], "functions": domain[:100]}
    print(f"{len(general)} docstrings, {len(domain)} functions, {tokenizer.get_vocab_size()} tokens")
    with_bos, without = (train(build(), general[100:], [BOS] * has, arguments.steps, 1e-3) for has in (1, 0))
    report("trained with BOS", with_bos, held_out)
    report("trained without BOS", without, held_out)
    for has in (1, 0):
        model = build()
        model.load_state_dict(with_bos.state_dict())
        train(model, domain[100:], [BOS] * has, arguments.more_steps, 3e-4)
        report(f"trained with BOS, then on functions {'with' if has else 'without'}", model, held_out)


def texts() -> tuple[list[str], list[str]]:
    """Docstrings of the standard library and of torch.nn; functions of the standard library. In an order of chance."""
    standard = Path(sysconfig.get_path("stdlib"))
    found: tuple[list[str], list[str]] = ([], [])
    for root in (standard, Path(torch.__file__).parent / "nn"):
        for path in sorted(root.rglob("*.py")):
            if "test" in path.parts or ("site-packages" in path.parts and root == standard):
                continue
            docstrings, functions = of_file(path)
            found[0].extend(docstrings)
            found[1].extend(functions if root == standard else [])
    chosen = [sorted(set(kind)) for kind in found]
    for kind in chosen:
        random.Random(0).shuffle(kind)
    return chosen[0][:6000], chosen[1][:3000]


def of_file(path: Path) -> tuple[list[str], list[str]]:
    """Docstrings and functions of 200 to 2000 characters."""
    try:
        source = path.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, OSError):
        return [], []
    kinds = ast.FunctionDef, ast.ClassDef, ast.Module
    docstrings = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    functions = [ast.get_source_segment(source, node) or "" for node in nodes if isinstance(node, ast.FunctionDef)]
    return [[text for text in kind if 200 <= len(text) <= 2000] for kind in (docstrings, functions)]  # type: ignore


def make_tokenizer(prose: list[str]) -> Tokenizer:
    """Byte-level, with a beginning and an end of sequence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(prose, trainer)
    return tokenizer


def build() -> LlamaForCausalLM:
    """A Llama of half a million parameters."""
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=1024, max_position_embeddings=2048, tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, documents: Documents, start: list[int], steps: int, peak: float) -> LlamaForCausalLM:
    """Train on documents one after the other, each with its start and EOS, cut at ``LENGTH``; prints losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    stream = sequences(documents, start)
    model.train()
    for step in range(steps):
        tokens = torch.tensor([next(stream) for _ in range(BATCH)])
        loss = model(input_ids=tokens, labels=tokens).loss
        if step in (0, steps // 2, steps - 1):
            print(f"  step {step + 1}: loss {loss.item():.4f}", flush=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def sequences(documents: Documents, start: list[int]) -> Iterator[list[int]]:
    """Without end; each pass in another order."""
    order, waiting = random.Random(1), list[int]()
    while True:
        for document in order.sample(documents, len(documents)):
            waiting += [*start, *document, EOS]
            while len(waiting) >= LENGTH:
                yield waiting[:LENGTH]
                waiting = waiting[LENGTH:]


@torch.no_grad()
def report(label: str, model: LlamaForCausalLM, held_out: dict[str, Documents]) -> None:
    """Mean nats a token of held-out documents after each start: all tokens, and each document's first ones."""
    print(label)
    for kind, documents in held_out.items():
        for name, start in STARTS.items():
            losses = [nats(model, start, document) for document in documents]
            first = torch.cat([part[:FIRST] for part in losses]).mean().item()
            print(f"  {kind:<11} after {name:<8} {torch.cat(losses).mean().item():.4f}   first {FIRST}: {first:.4f}")
    sys.stdout.flush()


def nats(model: LlamaForCausalLM, start: list[int], document: list[int]) -> torch.Tensor:
    """Of each token of a document."""
    tokens = torch.tensor([[*start, *document]])
    logits = model(input_ids=tokens).logits[0, len(start) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.float(), tokens[0, len(start) :], reduction="none")


if __name__ == "__main__":
    main()
