#!/usr/bin/env bash
# All of Mix-CPT on CPU: after the quickstart's continual pre-training, samples are scored and selected, and the model is
# aligned by SFT and DPO. About 20 minutes on 2 cores once everything is installed:
#
#   bash examples/mixcpt_full.sh [mixcpt|wo-kd|csd|cpt]
#
#   mixcpt  the method (default): mixture, logit swap self-distillation, alignment on the samples of highest FAS
#   wo-kd   the same without distillation ("Mix-CPT w/o KD" in the paper's tables)
#   csd     domain documents alone, then SFT and DPO on all samples, in sequence ("CSD")
#   cpt     domain documents alone, no alignment ("CPT")
#
# After the quickstart's six stages (see examples/quickstart.sh) come
#   7 score       FAS of every instruction and preference in the trained model (Eq. 8 and 9),
#   8 select      the samples of highest FAS,
#   9 sft         supervised fine-tuning on them (Eq. 10),
#  10 dpo         preference optimization against the model that SFT made (Eq. 11),
#  11 export      the aligned model as a Hugging Face folder, its chat template with it,
#  12 report      the perplexities again: the model at the start and the aligned one.
# Everything is written below outputs/full-METHOD; run again, it skips what is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

method="${1:-mixcpt}"
case "$method" in
mixcpt) training_flags=() ;;
wo-kd) training_flags=(--distillation none) ;;
csd | cpt) training_flags=(--distillation none --mixture-weights cpt=1) ;;
*) printf 'error: unknown method %s; choose one of: mixcpt, wo-kd, csd, cpt\n' "$method" >&2 && exit 2 ;;
esac

out="${FULL_OUTPUT:-outputs/full-$method}"
QUICKSTART_OUTPUT="$out" bash examples/quickstart.sh "${training_flags[@]}"
if [ "$method" = cpt ]; then exit; fi

export MIXCPT_DEVICE=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PATH="$PWD/.venv/bin:$PATH"
stages=(score select sft dpo aligned aligned-report)
source examples/quickstart/stages.sh
model="$out/smollm2-135m" scores="$out/scores.jsonl" selected="$out/selected" aligned="$out/aligned-hf"
alignment=(--seq-length 1024 --global-batch-size 8 --epochs 2 --clip-grad 1.0 --num-workers 0)

score() {
    OMP_NUM_THREADS="$threads" torchrun --nproc-per-node "$ranks" tools/score_alignment.py --load "$out/checkpoint" --dtype "$dtype" \
        --sft examples/data/sft.jsonl --dpo examples/data/dpo.jsonl --output "$scores"
}

select_samples() {
    mkdir "$selected"
    if [ "$method" = csd ]; then
        cp examples/data/sft.jsonl examples/data/dpo.jsonl "$selected"
        return
    fi
    for kind in sft dpo; do
        python tools/select_alignment.py --scores "$scores" --kind "$kind" --strategy high --top-k 24 \
            --output "$selected/$kind.jsonl"
    done
}

sft() {
    train "$out/sft.log" tools/train_sft.py --load "$out/checkpoint" --sft "$selected/sft.jsonl" \
        --save "$out/sft" "${alignment[@]}" --lr 2e-5
}

dpo() {
    train "$out/dpo.log" tools/train_dpo.py --load "$out/sft" --dpo "$selected/dpo.jsonl" \
        --save "$out/dpo" "${alignment[@]}" --lr 2e-6 --beta 0.1
}

export_aligned() { python tools/convert_to_hf.py --load "$out/dpo" --save "$aligned"; }

report_aligned() {
    evaluate "$aligned" "$out/evaluation-aligned" &&
        python examples/quickstart/report.py --before "$out/evaluation-before" --after "$out/evaluation-aligned" \
            --output "$out/aligned-report.txt"
}

# If the quickstart ran again, its model is scored and aligned again.
if [ "$out/.done-report" -nt "$out/.done-score" ]; then rm -f "$out/.done-score"; fi
SECONDS=0
run score score "$scores"
run select select_samples "$selected"
run sft sft "$out/sft"
run dpo dpo "$out/dpo"
run aligned export_aligned "$aligned"
run aligned-report report_aligned "$out/aligned-report.txt"

cat <<END

$(cat "$out/aligned-report.txt")

before           $model (Hugging Face)
after            $aligned (Hugging Face; chat template: chat_template.jinja)
scores           $scores; selected: $selected
logs             $out/sft.log, $out/dpo.log; curves in $out/sft/tensorboard and $out/dpo/tensorboard
alignment finished in $((SECONDS / 60)) min $((SECONDS % 60)) s
END
