"""Read a folder of PEFT's as adapters of the engine's modules, to go on training from it.

Where the layers that the engine joins have adapters of their own (query and value, as PEFT has it by default), the
joined layer's A is theirs one below the other, and B has each one's B in its own rows and columns and zeros elsewhere:
the same function at a higher rank. Layers with the same A, as our own exports have them, share it. A module without an
adapter has zeros, which training leaves as they are, for the gradient of each factor is a product with the other.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from megatron_mixcpt.adapters.targets import TARGETS
from megatron_mixcpt.conversion.adapters.modules import WEIGHT, adaptable_rules, hf_weights
from megatron_mixcpt.conversion.adapters.peft_config import PREFIX, WEIGHTS_NAME, PeftConfig, read_peft_config
from megatron_mixcpt.conversion.architectures.rules import Dimensions, Rule
from megatron_mixcpt.conversion.architectures.tensor_names import INSIDE, OUTSIDE, PLAIN
from megatron_mixcpt.conversion.hf_model_folder import ModelPlan
from megatron_mixcpt.conversion.tensor_files.reader import TRAINED, SafetensorsFolder
from megatron_mixcpt.errors import CheckpointError, ConfigError

_KEY = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
Keys = Mapping[str, str]
"""For each factor, ``A`` and ``B``, the name of its tensor."""


@dataclass(frozen=True)
class PeftAdapters:
    """The adapters of a PEFT folder, as those of the engine's modules."""

    rank: int
    """Of every module; above the folder's where joined layers have adapters of their own."""
    alpha: float
    """Such that B A is multiplied by the same number at this rank as in the folder."""
    dropout: float
    use_rslora: bool
    target_modules: str
    """The engine's names of the modules with an adapter, separated by commas, as in ``--lora-target-modules``."""
    tensors: SafetensorsFolder
    rules: Mapping[str, Rule]
    """The rule of each module that can have an adapter, by the engine's name."""
    dims: Dimensions
    keys: Mapping[str, Keys]
    """For each Hugging Face module with an adapter, its tensors."""

    def weights(self, engine_name: str, tp_rank: int, tp_size: int) -> tuple[Tensor, Tensor]:
        """A rank's part of the adapter beside the weight ``engine_name`` (``decoder.layers.0.mlp.linear_fc1.weight``).

        Returns A [rank, in] and B [out, rank] in float32, rows in the engine's order; of a column-parallel weight B has
        the rank's rows, of a row-parallel one A its columns.
        """
        rule = self.rules[engine_name.removesuffix(WEIGHT)]
        a, parts = self._joined(rule)
        mine = rule.blocks(self.dims, tp_rank, tp_size)
        columns = mine[0].columns if rule.splits_columns else None
        blocks = rule.blocks(self.dims) if rule.splits_columns else mine
        rows = [parts[block.name.removesuffix(WEIGHT)][block.rows] for block in blocks]
        return a[:, columns or slice(None)].contiguous(), torch.cat(rows)

    def _joined(self, rule: Rule) -> tuple[Tensor, dict[str, Tensor]]:
        """A [rank, in] of the joined layer, and B [out, rank] of each Hugging Face module that makes it."""
        shapes = hf_weights(rule, self.dims)
        a = torch.zeros(self.rank, next(iter(shapes.values()))[1])
        parts = {module: torch.zeros(rows, self.rank) for module, (rows, _) in shapes.items()}
        start = 0
        for modules in _with_the_same_a(self.tensors, self.keys, shapes):
            factor = self.tensors.read(self.keys[modules[0]]["A"]).float()
            stop = start + len(factor)
            a[start:stop] = factor
            for module in modules:
                parts[module][:, start:stop] = self.tensors.read(self.keys[module]["B"]).float()
            start = stop
        return a, parts


def read_peft_folder(folder: Path, plan: ModelPlan) -> PeftAdapters:
    """Read the settings of a PEFT folder and check its tensors; prints a line where the rank grows.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        plan: the base model.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are not those of the model's modules.
        ConfigError: adapters that cannot be trained here.
    """
    config = read_peft_config(folder)
    tensors = _open(folder)
    rules = adaptable_rules(plan)
    keys = _keys_by_module(tensors, plan, rules)
    _check_shapes(tensors, plan, rules, keys, config.rank)
    numbers = {
        module: len(_with_the_same_a(tensors, keys, hf_weights(rule, plan.dims))) for module, rule in rules.items()
    }
    grown = _grown(config, max(numbers.values()))
    if grown.rank > config.rank:
        _say_once(_growth(folder, config, grown))
    adapted = {module.rpartition(".")[2] for module, number in numbers.items() if number}
    targets = [name for name in TARGETS if name in adapted]
    return PeftAdapters(
        grown.rank, grown.alpha, grown.dropout, grown.use_rslora, ",".join(targets), tensors, rules, plan.dims, keys
    )


def _open(folder: Path) -> SafetensorsFolder:
    if not (folder / WEIGHTS_NAME).is_file():
        pickles = " (its .bin file is a pickle, which may run code when opened)" if any(folder.glob("*.bin")) else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}{pickles}: save the adapters with PEFT as safetensors")
    return SafetensorsFolder(folder, WEIGHTS_NAME)


def _keys_by_module(
    tensors: SafetensorsFolder, plan: ModelPlan, rules: Mapping[str, Rule]
) -> dict[str, dict[str, str]]:
    """The tensors of each Hugging Face module, which is named as in the base model's files."""
    known, keys = _known_modules(plan, rules), dict[str, dict[str, str]]()
    for name in tensors.entries:
        if (match := _KEY.fullmatch(name)) is None:
            raise ConfigError(
                f"{tensors.folder / WEIGHTS_NAME}: {name} is not the A or B of a linear layer, and nothing else is "
                "supported: train without it"
            )
        if (module := known.get(match["module"])) is None:
            raise ConfigError(f"{tensors.folder / WEIGHTS_NAME}: {_why_unknown(match['module'], plan)}")
        keys.setdefault(module, {})[match["factor"]] = name
    if not keys:
        raise CheckpointError(f"{tensors.folder / WEIGHTS_NAME} holds no adapter")
    for module, factors in keys.items():
        for factor in "AB":
            if factor not in factors:
                raise CheckpointError(
                    f"{tensors.folder / WEIGHTS_NAME}: {module} lacks its lora_{factor}: copy it again"
                )
    return keys


def _known_modules(plan: ModelPlan, rules: Mapping[str, Rule]) -> dict[str, str]:
    """Names that a module can have in a PEFT folder -> its name in the base model's files.

    A multimodal model's modules are named as in memory, where the language model may stand elsewhere than in the files.
    """
    known = {module: module for rule in rules.values() for module in hf_weights(rule, plan.dims)}
    for names in (INSIDE, OUTSIDE, PLAIN) if plan.architecture.tower is not None else ():
        others = adaptable_rules(replace(plan, names=names))
        for module, rule in rules.items():
            known |= zip(hf_weights(others[module], plan.dims), hf_weights(rule, plan.dims), strict=True)
    return known


def _why_unknown(module: str, plan: ModelPlan) -> str:
    if ".experts." in module or module.endswith(".experts"):
        return f"{module} belongs to routed experts, which get no adapters here: train without them"
    if any(name.rpartition(".")[0] == module for name in plan.hf_shapes()):
        return f"{module} cannot have an adapter here: train without it"
    return f"{plan.folder} has no module {module}: the adapters belong to another model"


def _check_shapes(
    tensors: SafetensorsFolder, plan: ModelPlan, rules: Mapping[str, Rule], keys: Mapping[str, Keys], rank: int
) -> None:
    shapes = {module: shape for rule in rules.values() for module, shape in hf_weights(rule, plan.dims).items()}
    for module, factors in keys.items():
        rows, columns = shapes[module]
        for factor, wanted in (("A", (rank, columns)), ("B", (rows, rank))):
            name = factors[factor]
            entry = tensors.entries[name]
            if entry.shape != wanted:
                raise CheckpointError(
                    f"{entry.path}: {name} has shape {entry.shape}, r {rank} and {plan.folder} imply {wanted}"
                )
            if entry.dtype not in TRAINED:
                raise CheckpointError(f"{entry.path}: {name} is {entry.dtype}: save the adapters in float32")


def _with_the_same_a(
    tensors: SafetensorsFolder, keys: Mapping[str, Keys], modules: Mapping[str, object]
) -> list[list[str]]:
    """Of the modules those with an adapter, in groups that have the same A, bit for bit."""
    groups: list[tuple[Tensor, list[str]]] = []
    for module in (module for module in modules if module in keys):
        a = tensors.read(keys[module]["A"])
        for other, group in groups:
            if other.dtype == a.dtype and torch.equal(other, a):
                group.append(module)
                break
        else:
            groups.append((a, [module]))
    return [group for _, group in groups]


def _grown(config: PeftConfig, times: int) -> PeftConfig:
    """The same function at a rank that is so many times as large."""
    return replace(
        config, rank=config.rank * times, alpha=config.alpha * (math.sqrt(times) if config.use_rslora else times)
    )


@cache
def _say_once(line: str) -> None:
    """Print a line on the first rank, however often the folder is read."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _growth(folder: Path, config: PeftConfig, grown: PeftConfig) -> str:
    return (
        f"{folder}: rank {config.rank} becomes {grown.rank} (alpha {config.alpha:g} becomes {grown.alpha:g}): layers "
        "that are one here (query, key and value; gate and up) have separate adapters there; the function is the same"
    )
