"""A Hugging Face model folder, read and checked before any weight is.

:func:`read_model_folder` is where training, scoring and conversion start: it finds the architecture, turns
``config.json`` into the engine's arguments, and compares every tensor's name and shape in the safetensors headers with
what the architecture consumes, both ways.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from megatron_mixcpt.conversion.architectures.hf_config import (
    FREE_ARGUMENTS,
    Architecture,
    HFConfig,
    bias_rules,
    engine_settings,
    model_options,
)
from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from megatron_mixcpt.conversion.architectures.rules import Dimensions, Rule, dimensions
from megatron_mixcpt.conversion.architectures.tensor_names import PLAIN, TensorNames
from megatron_mixcpt.conversion.architectures.text_tower import TIED, language_model, with_text
from megatron_mixcpt.conversion.tensor_files.quantized import DequantizedFolder
from megatron_mixcpt.conversion.tensor_files.reader import TRAINED, SafetensorsFolder, read_json
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.flags import flag_name
from megatron_mixcpt.models.options import ModelOptions

CONFIG_NAME = "config.json"
EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"
OUTPUT_WEIGHT = "lm_head.weight"


@dataclass(frozen=True)
class ModelPlan:
    """What ``config.json`` alone decides: the engine's arguments, and a rule for every engine tensor."""

    folder: Path
    architecture: Architecture
    config: Mapping[str, Any]
    """The settings of the language model: config.json as it stands, or its ``text_config``."""
    engine_arguments: Mapping[str, Any]
    """Engine arguments by their names in ``get_args()``, ready to fill in."""
    origins: Mapping[str, str]
    """For each engine argument, the setting of config.json that decides it."""
    options: ModelOptions
    """What config.json decides beyond the engine's arguments."""
    outer: Mapping[str, Any] | None = field(default=None, kw_only=True)
    """config.json as it stands where it holds a language model among others; None: it is that of one."""
    names: TensorNames = field(default=PLAIN, kw_only=True)
    """How the folder's files name the language model's tensors."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding in the HF folder, without any padding for tensor parallelism."""
        return self.engine_arguments["vocab_size"]

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return not self.engine_arguments["untie_embeddings_and_output_weights"]

    @property
    def dims(self) -> Dimensions:
        """The sizes that rules write shapes in."""
        return dimensions(self.engine_arguments)

    @property
    def quantization(self) -> str | None:
        """``quant_method`` of the folder's weights, which are read as bfloat16; None: they are not quantized."""
        return (self.config.get("quantization_config") or {}).get("quant_method")

    def rules(self) -> dict[str, Rule]:
        """A rule for every engine tensor, by the engine's name."""
        num_layers, num_experts = self.engine_arguments["num_layers"], self.engine_arguments["num_experts"] or 0
        config = HFConfig(self.folder / CONFIG_NAME, self.config, self.architecture)
        biases = [rule for rules in bias_rules(config, self.architecture).values() for rule in rules]
        templates = [((*self.architecture.name_map, *biases), range(num_layers))]
        if rules_of_layer := self.architecture.rules_of_layer:
            templates += [(rules_of_layer(config, layer), range(layer, layer + 1)) for layer in range(num_layers)]
        rules = [rule for items, layers in templates for item in items for rule in item.instances(layers, num_experts)]
        kept = (rule for rule in rules if not (self.tied and rule.engine == OUTPUT_LAYER))
        return {rule.engine: rule if self.names is PLAIN else self.names.renamed(rule) for rule in kept}

    def document(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json with other settings of the language model."""
        return dict(config) if self.outer is None else with_text(self.outer, config)

    def is_carried(self, name: str) -> bool:
        """Whether a tensor of the files is not trained, and travels from the base model's folder to the export."""
        pattern = (self.architecture.carried_tensors or "").replace(
            "{num_layers}", str(self.engine_arguments["num_layers"])
        )
        if pattern and re.fullmatch(pattern, name):
            return True
        if self.architecture.tower is None:
            return False
        return not name.startswith((self.names.model, self.names.head))

    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every HF tensor that the rules consume."""
        dims = self.dims
        return {name: shape for rule in self.rules().values() for name, shape in rule.hf_shapes(dims).items()}


@dataclass(frozen=True)
class HFModel(ModelPlan):
    """A model folder whose weights are complete and of the right shapes."""

    tensors: SafetensorsFolder

    @property
    def carried(self) -> list[str]:
        """Names of the tensors that travel to the export untrained."""
        consumed = self.hf_shapes()
        return sorted(name for name in self.tensors.entries if name not in consumed and self.is_carried(name))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights."""
        return Counter(self.tensors.entries[name].dtype for name in self.hf_shapes()).most_common(1)[0][0]


def read_config(hf_dir: str | Path) -> ModelPlan:
    """Read ``config.json`` alone.

    Raises:
        CheckpointError: no such folder, or no readable config.json in it.
        ConfigError: an architecture or setting that the engine cannot express.
    """
    folder = Path(hf_dir)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: give a Hugging Face model folder on this machine")
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}: give a Hugging Face model folder")
    values = read_json(path)
    names = values.get("architectures") or []
    known = [architecture for name, architecture in ARCHITECTURES.items() if isinstance(names, list) and name in names]
    if not known:
        raise ConfigError(
            f"{path}: architecture {ascii(names)[:200]} is not supported; these are: {', '.join(ARCHITECTURES)}"
        )
    architecture, text = language_model(known[0], path, values)
    plan = plan_of(folder, architecture, text)
    return plan if architecture.tower is None else replace(plan, outer=values, names=architecture.tower.names[0])


def plan_of(folder: Path, architecture: Architecture, values: Mapping[str, Any]) -> ModelPlan:
    """What ``values``, the settings of a language model in ``folder``, decide; raises ConfigError."""
    config = HFConfig(folder / CONFIG_NAME, values, architecture)
    settings = engine_settings(config, architecture)
    arguments = {name: setting.value for name, setting in settings.items()}
    origins = {name: setting.origin for name, setting in settings.items()}
    return ModelPlan(folder, architecture, values, arguments, origins, model_options(config, architecture))


def read_model_folder(hf_dir: str | Path) -> HFModel:
    """Read a folder's config and check its weights by their headers; no tensor is read.

    Raises:
        CheckpointError: no such folder or config.json, weights only as pickles, shards that are missing, truncated,
            duplicated or not as the index says, or tensors that are missing, unexpected or of another shape.
        ConfigError: an architecture or setting that the engine cannot express.
    """
    plan = read_config(hf_dir)
    block_size = (plan.config.get("quantization_config") or {}).get("weight_block_size")
    tensors = DequantizedFolder(plan.folder, block_size) if plan.quantization else SafetensorsFolder(plan.folder)
    plan = _tied_as_stored(_with_names_of(plan, tensors), tensors)
    _check_tensors(plan, tensors)
    return HFModel(**vars(plan), tensors=tensors)


def _with_names_of(plan: ModelPlan, tensors: SafetensorsFolder) -> ModelPlan:
    """The plan with the names that the files of a multimodal model have."""
    known = plan.architecture.tower.names if plan.architecture.tower else ()
    found = [names for names in known if names.of("model.embed_tokens.weight") in tensors.entries]
    return replace(plan, names=found[0]) if found else plan


def _tied_as_stored(plan: ModelPlan, tensors: SafetensorsFolder) -> ModelPlan:
    """The plan of a multimodal model, untied where config.json does not say and the files have another output layer.

    So transformers reads it (``PreTrainedModel.tie_weights``), whatever it assumes for the absent key: Mistral Small
    3.1 has an output layer of its own, the smallest Ministral 3 none.
    """
    outer, head = plan.outer, plan.names.of(OUTPUT_WEIGHT)
    if outer is None or outer.get(TIED) is not None or not plan.tied or head not in tensors.entries:
        return plan
    if _is_tied_copy(plan, tensors):
        return plan
    untied = plan_of(plan.folder, plan.architecture, {**plan.config, TIED: False})
    return replace(untied, outer={**outer, TIED: False}, names=plan.names)


def _check_tensors(plan: ModelPlan, tensors: SafetensorsFolder) -> None:
    rules, dims, head = plan.rules(), plan.dims, plan.names.of(OUTPUT_WEIGHT)
    expected = {name: shape for rule in rules.values() for name, shape in rule.hf_shapes(dims).items()}
    extra = [name for name in tensors.entries if name not in expected and not plan.is_carried(name)]
    unexpected = [name for name in extra if not re.fullmatch(plan.architecture.ignored_tensors, name)]
    if plan.tied and head in unexpected:
        _check_tied_copy(plan, tensors)
        unexpected.remove(head)
    missing = [name for name in expected if name not in tensors.entries]
    if missing or unexpected:
        raise CheckpointError(
            f"{plan.folder} does not match its {CONFIG_NAME}: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    for name, shape in expected.items():
        if tensors.entries[name].shape != shape:
            raise CheckpointError(
                f"{tensors.entries[name].path}: {name} has shape {tensors.entries[name].shape}, "
                f"{CONFIG_NAME} implies {shape}"
            )
        if tensors.entries[name].dtype not in TRAINED:
            raise CheckpointError(
                f"{tensors.entries[name].path}: {name} is {_named(tensors.entries[name].dtype)}, and only "
                f"{', '.join(map(_named, TRAINED))} can be trained: use the unquantized checkpoint"
            )
    for rule in rules.values():
        names = rule.hf_shapes(dims)
        if len({tensors.entries[name].dtype for name in names}) > 1:
            raise CheckpointError(
                f"{plan.folder}: {', '.join(names)} differ in dtype: save the model again in one dtype"
            )


def _check_tied_copy(plan: ModelPlan, tensors: SafetensorsFolder) -> None:
    """A tied checkpoint may store the output layer too, if it is the embedding."""
    if not _is_tied_copy(plan, tensors):
        raise CheckpointError(
            f"{plan.folder}: {CONFIG_NAME} ties the embeddings, but {plan.names.of(OUTPUT_WEIGHT)} is not "
            f"{_embedding_of(plan)}: set tie_word_embeddings to false if the output layer is separate"
        )


def _is_tied_copy(plan: ModelPlan, tensors: SafetensorsFolder) -> bool:
    """Whether the output layer in the files is the embedding."""
    embedding, head, chunk = _embedding_of(plan), plan.names.of(OUTPUT_WEIGHT), 8192
    if embedding not in tensors.entries or tensors.entries[embedding].shape != tensors.entries[head].shape:
        return False
    ranges = (slice(start, start + chunk) for start in range(0, plan.vocab_size, chunk))
    return all(torch.equal(tensors.read(embedding, rows), tensors.read(head, rows)) for rows in ranges)


def _embedding_of(plan: ModelPlan) -> str:
    return next(iter(plan.rules()[EMBEDDING].hf_shapes(plan.dims)))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"


FLAG_NAMES = {  # flags that are not named after their argument
    "add_bias_linear": "--disable-bias-linear",
    "layernorm_epsilon": "--norm-epsilon",
    "layernorm_zero_centered_gamma": "--apply-layernorm-1p",
}


def refuse_contradictions(explicit_flags: Mapping[str, Any], model: ModelPlan) -> None:
    """Refuse flags that contradict the checkpoint.

    Args:
        explicit_flags: value of every flag that the user gave, by its name in ``get_args()`` (``num_layers``).
        model: the model folder.

    Raises:
        ConfigError: naming every contradicting flag, with both values.
    """
    wrong = [
        f"{FLAG_NAMES.get(name) or flag_name(name)} {value} (it has {model.origins[name]})"
        for name, value in explicit_flags.items()
        if name in model.engine_arguments and name not in FREE_ARGUMENTS and value != model.engine_arguments[name]
    ]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)} contradict{'s' if len(wrong) == 1 else ''} {model.folder / CONFIG_NAME}: "
            f"remove {'the flag' if len(wrong) == 1 else 'these flags'}"
        )
