"""Check a Hugging Face model folder for what would only show after hours of training.

Three faults load without an error and ruin a run: values that are NaN or infinite; embedding rows near zero (of tokens
that were never trained: their first large gradients make continual pre-training diverge); and a tokenizer with ids that
the embedding has no row for. Tensors are read one after another.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer

from megatron_mixcpt.conversion.hf_model_folder import EMBEDDING, OUTPUT_LAYER, HFModel

NEAR_ZERO = 0.05  # of the median row norm; the smallest row of SmolLM2-135M, where every token was trained, is at 0.57
CHUNK_ROWS = 16384


@dataclass
class Preflight:
    """What was found: ``problems`` must be fixed before training, ``warnings`` should be known."""

    num_tensors: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_hf_model(hf_model: HFModel) -> Preflight:
    """Read every weight once, and the tokenizer, and report what is wrong with them."""
    found = Preflight()
    rules = hf_model.rules()
    rows_of = {name: rules[name].blocks(hf_model.dims)[0].name for name in (EMBEDDING, OUTPUT_LAYER) if name in rules}
    for name in hf_model.hf_shapes():
        found.num_tensors += 1
        norms, num_bad = _scan(hf_model, name)
        if num_bad:
            found.problems.append(f"{name} has {num_bad} values that are NaN or infinite")
        elif name in rows_of.values():
            found.warnings += _near_zero_rows(name, norms)
    _check_tokenizer(hf_model, found)
    return found


def _scan(hf_model: HFModel, name: str) -> tuple[torch.Tensor, int]:
    """Norm of each row (float32) and the number of values that are not finite."""
    norms, num_bad = [], 0
    num_rows = hf_model.tensors.entries[name].shape[0]
    for start in range(0, num_rows, CHUNK_ROWS):
        values = hf_model.tensors.read(name, slice(start, start + CHUNK_ROWS)).float()
        num_bad += int((~values.isfinite()).sum())
        norms.append(values.view(values.shape[0], -1).norm(dim=1))
    return torch.cat(norms), num_bad


def _near_zero_rows(name: str, norms: torch.Tensor) -> list[str]:
    low = (norms < NEAR_ZERO * norms.median()).nonzero().view(-1).tolist()
    if not low:
        return []
    shown = ", ".join(map(str, low[:8])) + (", ..." if len(low) > 8 else "")
    return [f"{name} has {len(low)} rows near zero (ids {shown}): never trained; keep these tokens out of the data"]


def _check_tokenizer(hf_model: HFModel, found: Preflight) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(hf_model.folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        found.problems.append(f"no tokenizer could be read from {hf_model.folder} ({reason})")
        return
    largest = max(tokenizer.get_vocab().values())
    if largest >= hf_model.vocab_size:
        found.problems.append(f"the tokenizer has ids up to {largest}, the embedding only {hf_model.vocab_size} rows")
    if tokenizer.eos_token_id is None:
        found.problems.append("the tokenizer has no end-of-text token, which ends every training sample")
    unused = hf_model.vocab_size - 1 - largest
    if unused > 0:
        found.warnings.append(f"the embedding has {unused} rows beyond the tokenizer's last id {largest} (padding)")
