"""Every family: what its tables must agree on.

Weights and logits: ``tests/distributed/test_families.py``; what is refused: ``test_hf_model_folder.py``.
"""

import re

import pytest
import transformers

from megatron_mixcpt.conversion.architectures.hf_config import CONFIG_MAP, FIXED_ARGUMENTS, Architecture
from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from tests.distributed.tiny_models import kinds_of_architectures

TRIED = kinds_of_architectures()
FAMILIES = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


@FAMILIES
def test_transformers_has_it(architecture: Architecture) -> None:
    assert hasattr(transformers, architecture.name)


@FAMILIES
def test_it_is_tested(architecture: Architecture) -> None:
    assert architecture.name in TRIED, "add a tiny configuration to tests/distributed/kinds/"


@FAMILIES
def test_its_tables_say_one_thing_each(architecture: Architecture) -> None:
    engine_names = [rule.engine for rule in architecture.name_map]
    assert len(engine_names) == len(set(engine_names))
    mapped = {**CONFIG_MAP, **architecture.config_map}
    assert len(set(mapped.values())) == len(mapped)
    assert not set(mapped.values()) & set(architecture.arguments)
    assert not architecture.required.keys() & mapped.keys()
    re.compile(architecture.ignored_tensors)


@FAMILIES
def test_its_arguments_differ_from_the_common_ones(architecture: Architecture) -> None:
    assert not architecture.arguments.items() & FIXED_ARGUMENTS.items(), "they are in FIXED_ARGUMENTS already"


@FAMILIES
def test_assumed_values_are_those_of_transformers(architecture: Architecture) -> None:
    """``hf_defaults`` against the config class: where it has the key, the value is the same."""
    config_class = getattr(transformers, architecture.name).config_class
    config = config_class().to_dict()
    for key, value in architecture.hf_defaults.items():
        made = {**config, **(config.get("rope_parameters") or {})}.get(key, value)
        assert getattr(config_class, key, made) == value, (
            key
        )  # the field's default: instances without windows have none
