"""The first stage of Mix-CPT beside what it is compared with, each with several seeds; what is done is not done again.

    bash tools/setup_env.sh quickstart && export PATH="$PWD/.venv/bin:$PATH"
    python examples/reproduce/first_stage.py --output outputs/reproduce

SmolLM2-135M-Instruct learns from French encyclopedia articles, the weakest of the measured texts together with Spanish
(docs/evidence/results.md). Every run has the same number of tokens and steps, and the same learning rates; LoRA has
its own, chosen by rank on other text. All were chosen before the first run and changed for none. Seeds order the data.
They are the outer loop, so that a run cut short has complete seeds.

    OUTPUT/{model,texts,mixture,runs,merged,evaluations}     see runs.py
    OUTPUT/figures.json                                      all of it that docs/evidence/results.md reports
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.reproduce.runs import LORA_8, MIXTURE, figures, make_inputs, train, write_json  # noqa: E402

# The rows of the paper's Tables 2 and 3 and of its Figure 6, as flags of the trainer; then adapters in their place.
METHODS = {
    "cpt": ["--mixture-weights", "cpt=1", "--distillation", "none"],
    "mixcpt-without-kd": [*MIXTURE, "--distillation", "none"],
    "mixcpt": MIXTURE,
    "kd": [*MIXTURE, "--distillation", "kd"],
    "l2": [*MIXTURE, "--distillation", "l2"],
    "half": [*MIXTURE, "--distillation-fraction", "0.5"],
    "alpha-0.5": [*MIXTURE, "--alpha", "0.5"],
    "alpha-0.95": [*MIXTURE, "--alpha", "0.95"],
    "lora-8": LORA_8,
    "lora-64": [*MIXTURE, "--lora-rank", "64", "--lora-alpha", "128", "--lr", "1e-3", "--min-lr", "1e-4"],
}


def main() -> None:
    """Make the inputs, then train and evaluate what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--train-iters", type=int, default=16, help="steps of 1,024 tokens")
    args = parser.parse_args()
    make_inputs(args.output)
    for seed in args.seeds:
        for method in args.methods:
            train(method, METHODS[method], seed, args.train_iters, args.output)
    names = ["base", *(f"{method}/seed-{seed}" for method in args.methods for seed in args.seeds)]
    write_json(args.output / "figures.json", {name: figures(name, args.output) for name in names})


if __name__ == "__main__":
    main()
