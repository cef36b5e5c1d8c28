"""How an answer to the tasks here is scored; the YAML files name these functions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_mixcpt.evaluation.code_runner import passes

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def humaneval(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the function, as completed, passes its tests (Chen et al. 2021)."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass@1": float(passes(program))}


def mbpp(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the program passes its three tests (Austin et al. 2021)."""
    return {"pass@1": float(passes("\n".join([results[0], *doc["test_list"]])))}


def last_number(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the last number of a solution is the answer."""
    numbers = NUMBER.findall(results[0])
    is_right = bool(numbers) and float(numbers[-1].replace(",", "")) == float(doc["Answer"])
    return {"exact_match": float(is_right)}
