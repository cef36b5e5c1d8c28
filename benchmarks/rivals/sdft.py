"""Self-distillation from demonstrations (SDFT, Shenfeld et al. 2026, arXiv 2601.19897) on the small language, by TRL's
own trainer, after the controlled experiment has made its base models.

    pip install trl==1.16     # in an environment of its own that sees this project
    python benchmarks/rivals/sdft.py --output outputs/controlled --seeds 1 2 3

The student answers a prompt, ``. opening subject relation``, by itself. The teacher is the base model before a
demonstration, ``note subject relation object``, which its general text taught it to take answers from. The student
learns to answer as the teacher does. A step has as many sentences as one of the other methods and the same share of
replayed facts. TRL's defaults are kept but for the optimizer, which is that of the other methods, one answer for each
prompt, and the divergence over the whole vocabulary of 87 words.

    OUTPUT/mixed/cells/sdft-0/seed-N.json        as of the other methods, and whether the teacher follows demonstrations
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.reproduce.controlled import MAIN, SDFT, cell_of, cell_path, write  # noqa: E402
from examples.reproduce.small_model import Budget, measure  # noqa: E402
from examples.reproduce.synthetic_language import (  # noqa: E402
    KINDS,
    NOTE,
    OBJECTS,
    PAD,
    SENTENCES_PER_ROW,
    STOP,
    VOCABULARY_SIZE,
    Language,
    questions,
)


def main() -> None:
    """One run for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        path = cell_path(args.output / MAIN, SDFT, seed)
        if not path.exists():
            cell = learn_from_demonstrations(args.output, seed, Budget())
            write(path, cell)
            print(f"seed {seed}: gain {cell['gain']:+.1f}, change {cell['change']:+.1f} points", flush=True)


def learn_from_demonstrations(output: Path, seed: int, budget: Budget) -> dict[str, Any]:
    """Train by SDFT on as many sentences as the other methods see; the cell."""
    language, folder = Language(seed), output / "base" / f"seed-{seed}"
    model = LlamaForCausalLM.from_pretrained(folder)
    before, follows = measure(model, language), followed(model, language, seed)
    trainer = SDFTTrainer(
        model=model,
        args=settings(output / "sdft", seed, budget),
        train_dataset=demonstrations(language, seed, budget),
        processing_class=word_tokenizer(),
    )
    trainer.train()
    cell = cell_of(SDFT, seed, before, measure(model, language), KINDS)
    return cell | {"alpha": None, "follows": follows, "losses": trainer.state.log_history}


def settings(folder: Path, seed: int, budget: Budget) -> SDFTConfig:
    """Optimizer and budget of the other methods."""
    return SDFTConfig(
        output_dir=str(folder),
        seed=seed,
        max_steps=budget.steps,
        per_device_train_batch_size=budget.rows * SENTENCES_PER_ROW,
        num_generations=1,
        max_completion_length=2,
        distillation_mode="full_logits",
        distillation_topk=None,
        teacher_prompt_template="{privileged_context} {prompt}",
        shuffle_dataset=False,
        learning_rate=budget.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=budget.steps // 10,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=5,
        disable_tqdm=True,
    )


def demonstrations(language: Language, seed: int, budget: Budget) -> Dataset:
    """The sentences of the mixture, in its order: prompt, and the demonstration that the teacher sees before it."""
    generator = np.random.default_rng([seed, 2])
    rows = [language.mixed_rows(budget.rows, budget.domain_share, generator) for _ in range(budget.steps)]
    sentences = np.concatenate(rows)[:, 1:].reshape(-1, 5)
    return Dataset.from_list(
        [
            {"prompt": words([STOP, *sentence[:3]]), "privileged_context": words([NOTE, *sentence[1:4]])}
            for sentence in sentences
        ]
    )


def words(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Token N is the word wN."""
    tokenizer = Tokenizer(WordLevel({f"w{token}": token for token in range(VOCABULARY_SIZE)}, unk_token=f"w{PAD}"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"w{STOP}", pad_token=f"w{PAD}")


def followed(model: LlamaForCausalLM, language: Language, seed: int) -> float:
    """The mean probability in percent that the teacher gives to the domain's answer once it is demonstrated."""
    facts = language.domain_facts
    answers, asked = OBJECTS + language.answers[facts, 0], questions(facts)
    notes = np.full_like(facts, NOTE)[:, None]
    prompts = np.concatenate([notes, asked[:, 2:], answers[:, None], asked], axis=1)
    with torch.no_grad():
        logits = model(torch.from_numpy(prompts), use_cache=False).logits[:, -1]
    return 100 * float(logits.softmax(-1).gather(1, torch.from_numpy(answers)[:, None]).mean())


if __name__ == "__main__":
    main()
