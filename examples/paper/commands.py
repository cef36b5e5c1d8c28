"""The paper's experiments as commands of this package, one stage a line, ready for a shell.

    python examples/paper/commands.py --model llama3 --domain math --method mixcpt            # to read
    python examples/paper/commands.py --model llama3 --domain math --method mixcpt | bash -e   # to run

Tables 1 to 3 of the paper (arXiv 2407.10804) are models x domains x methods; section 3.3 and the appendix vary the
distillation, its weight and the selection. What differs between them is written down here and nowhere else; what is
common (batch, sequence length, schedule) is in the recipes that the commands run, examples/*_llama3.sh and *_qwen2.sh.

--data holds the published data sets, downloaded by any means (docs/how-to/prepare-data.md names them):
base/{llama3,qwen2}, wikipedia, AutoMathText, starcoderdata, pubmed, tulu-v2-sft-mixture, ultrafeedback_binarized.
"""

import argparse
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

DOMAINS = {
    # tokens of the domain as in section 3.1
    "wiki": "--cpt {data}/wikipedia --cpt-preset wikipedia --cpt-max-tokens 4000000000",
    "math": "--cpt {data}/AutoMathText/data --cpt-preset automathtext",
    "code": "--cpt {data}/starcoderdata/python --cpt-preset starcoder --cpt-max-tokens 1000000000",
    "medicine": "--cpt {data}/pubmed/chunk --cpt-preset pubmed",
}
# Both are in the form that every tool reads: their presets of --list-presets rename and leave out nothing.
GENERAL = {"sft": "{data}/tulu-v2-sft-mixture/data", "dpo": "{data}/ultrafeedback_binarized/data/train_prefs-*.parquet"}
# Method -> flags of the first stage. Rows that start with "cpt" and "csd" see the domain's documents alone.
METHODS = {
    "cpt": "--distillation none",
    "csd": "--distillation none",
    "mixcpt-without-kd": "--distillation none",
    "mixcpt": "--distillation lssd --alpha 0.8",
    "kd": "--distillation kd --alpha 0.8",
    "l2": "--distillation l2",
    "half": "--distillation lssd --alpha 0.8 --distillation-fraction 0.5",
}
DOMAIN_ALONE = ("cpt", "csd")
TOP_K = 10_000
# The domain's own benchmarks; those of code run what the model writes, and are run only on request.
SUITES = {"wiki": "wiki", "math": "math", "code": "code --run-generated-code", "medicine": "medicine"}
GENERAL_SUITES = ("reading", "reasoning", "exams")


def main() -> None:
    """Print the commands of one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["llama3", "qwen2"], required=True)
    parser.add_argument("--domain", choices=DOMAINS, required=True)
    parser.add_argument("--method", choices=METHODS, default="mixcpt")
    strategies = ["high", "low", "half", "random", "low-perplexity"]
    parser.add_argument("--strategy", choices=strategies, default="high", help="of selection (default high)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of models and data sets")
    parser.add_argument("--output", type=Path, default=Path("outputs/paper"), help="folder of everything that is made")
    args = parser.parse_args()
    for command in commands(args.model, args.domain, args.method, args.strategy, args.data, args.output):
        print(command)


def commands(model: str, domain: str, method: str, strategy: str, data: Path, output: Path) -> Iterator[str]:
    """The command lines of one row of the tables, in the order in which they are run.

    Args:
        model: ``llama3`` or ``qwen2``, whose recipes hold the learning rates.
        domain, method: keys of ``DOMAINS`` and ``METHODS``.
        strategy: of ``tools/select_alignment.py``; ``csd`` selects none, but aligns on all samples.
    """
    base = shlex.quote(str(data / "base" / model))
    data = shlex.quote(str(data))
    general = {kind: f"--{kind} {path.format(data=data)}" for kind, path in GENERAL.items()}
    run = shlex.quote(str(output / model / domain / method))
    mixture = shlex.quote(str(output / model / domain / ("documents" if method in DOMAIN_ALONE else "mixture")))
    sources = [DOMAINS[domain].format(data=data), *(() if method in DOMAIN_ALONE else general.values())]
    workers = f"--workers {len(os.sched_getaffinity(0))}"
    yield (
        f"[ -e {mixture}/mixture.json ] || python tools/preprocess_mixture.py {' '.join(sources)} "
        f"--tokenizer {base} --output {mixture} {workers} --on-bad-record skip"
    )
    yield (
        f"bash examples/pretrain_mixcpt_{model}.sh --hf-model {base} --mixture {mixture} --save {run}/cpt "
        f"{METHODS[method]}"
    )
    last, chosen = f"{run}/cpt", "all" if method == "csd" else strategy
    if method != "cpt":
        yield from alignment(model, chosen, general, run)
        last = f"{run}/{chosen}/dpo"
    yield f"python tools/convert_to_hf.py --load {last} --save {last}-hf"
    yield (
        f"python tools/evaluate.py --load {last} --tasks {' '.join((*GENERAL_SUITES, SUITES[domain]))}"
        f"{'' if method == 'cpt' else ' --apply-chat-template'} --output {last}-evaluation"
    )


def alignment(model: str, strategy: str, samples: dict[str, str], run: str) -> Iterator[str]:
    """The second stage: scores and selection (none with the strategy ``all``) of ``samples``, SFT, DPO."""
    if strategy != "all":
        template = {"llama3": "llama3", "qwen2": "chatml"}[model]
        yield (
            f"torchrun --nproc-per-node 8 tools/score_alignment.py --load {run}/cpt {' '.join(samples.values())} "
            f"--chat-template {template} --output {run}/scores.jsonl"
        )
        for kind in samples:
            yield (
                f"python tools/select_alignment.py --scores {run}/scores.jsonl --kind {kind} --strategy {strategy} "
                f"--top-k {TOP_K} --output {run}/{strategy}/{kind}.jsonl"
            )
        samples = {kind: f"--{kind} {run}/{strategy}/{kind}.jsonl" for kind in samples}
    before = f"{run}/cpt"
    for kind, given in samples.items():
        after = f"{run}/{strategy}/{kind}"
        yield f"bash examples/{kind}_{model}.sh --load {before} {given} --save {after}"
        before = after


if __name__ == "__main__":
    main()
