# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by the examples that run one stage after the other: `run`, and what their trainings have in common.
# Needs $out, the folder of all outputs, and the array $stages, their names in order.

number=0
ranks=2
threads=$(($(nproc) > ranks ? $(nproc) / ranks : 1)) # the ranks share the cores

# bfloat16 where the CPU multiplies in it; elsewhere it is emulated, and several times slower than float32.
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
    dtype=bfloat16 precision=(--bf16)
else
    dtype=float32 precision=()
fi

# train LOG TOOL FLAGS...: trains; what the terminal shows is kept in LOG, what Megatron prints in the logs/ of --save.
train() {
    local log="$1"
    shift
    OMP_NUM_THREADS="$threads" torchrun --nproc-per-node "$ranks" "$@" --pipeline-model-parallel-size 2 "${precision[@]}" 2>&1 |
        tee "$log"
}

# evaluate MODEL OUTPUT: measures a Hugging Face model on held-out code and on general English.
evaluate() {
    rm -rf "$2"
    OMP_NUM_THREADS="$threads" torchrun --nproc-per-node "$ranks" tools/evaluate.py --hf-model "$1" --output "$2" \
        --dtype "$dtype" --sequence-length 512 \
        --perplexity "Python code=$out/domain_heldout.jsonl" "general English=examples/data/general_english.jsonl"
}

# run STAGE FUNCTION OUTPUT: skips a stage that is marked as done. A stage that runs makes the later ones stale.
run() {
    local stage="$1" function="$2" output="$3" started=$SECONDS later
    number=$((number + 1))
    if [ -f "$out/.done-$stage" ] && [ -e "$output" ]; then
        printf '\n[%d/%d] %s: done before, see %s\n' "$number" "${#stages[@]}" "$stage" "$output"
        return
    fi
    for later in "${stages[@]:number-1}"; do rm -f "$out/.done-$later"; done
    rm -rf "$output"
    printf '\n[%d/%d] %s\n' "$number" "${#stages[@]}" "$stage"
    if ! "$function"; then
        printf 'error: stage "%s" failed (its message is above); correct the cause and run this again: finished stages are kept\n' "$stage" >&2
        exit 1
    fi
    touch "$out/.done-$stage"
    printf '[%d/%d] %s: %d s\n' "$number" "${#stages[@]}" "$stage" $((SECONDS - started))
}
