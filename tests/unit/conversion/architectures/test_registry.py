"""Every family: what its tables must agree on.

Weights and logits: ``tests/distributed/test_families.py``; what is refused: ``test_hf_model_folder.py``.
"""

import json
import re
from pathlib import Path

import pytest
import transformers

from megatron_mixcpt.conversion.architectures.hf_config import CONFIG_MAP, FIXED_ARGUMENTS, Architecture
from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from tests.distributed.families import tolerance_of
from tests.distributed.tiny_models import has_experts, kinds_of_architectures

TRIED = kinds_of_architectures()
RECORDS = Path(__file__).resolve().parents[4] / "docs/evidence/results/families"
PROVE = "benchmarks/parity/families.py"
# As in the scripts that wrote the record: float32 on both sides, in another order of sums.
FIRST_TOLERANCE = 2e-4
FAMILIES = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


@FAMILIES
def test_transformers_has_it(architecture: Architecture) -> None:
    assert hasattr(transformers, architecture.name)


@FAMILIES
def test_it_is_tested(architecture: Architecture) -> None:
    assert architecture.name in TRIED, "add a tiny configuration to tests/distributed/kinds/"


@FAMILIES
def test_it_is_described(architecture: Architecture) -> None:
    assert architecture.models, "name published models, for docs/reference/families.md"


@FAMILIES
def test_it_has_every_proof(architecture: Architecture) -> None:
    """The record of ``benchmarks/parity/families.py``; the suite itself repeats all but the first training losses."""
    kind = TRIED[architecture.name][0]
    path = RECORDS / f"{kind}.json"
    assert path.is_file(), f"run first_iteration.py and {PROVE} --record --kinds {kind} --training FILE"
    found = json.loads(path.read_text())
    assert found["round trip"] and found["generates the same"]
    needed = {"1x1", "TP2+SP", "PP2", "CP2"} | ({"EP2"} if has_experts(kind) else set())
    assert needed <= found["layouts"].keys(), f"{PROVE}: a layout is missing"
    for layout, figures in found["layouts"].items():
        assert figures["exported"] and max(figures["logits"], figures["released"]) <= tolerance_of(kind), layout
    assert max(found["layouts"]["1x1"][key] for key in ("grad-norm", "embedding gradient")) <= tolerance_of(kind)
    assert {"1x1", "TP2+SP", "PP2"} <= found["first iteration"].keys(), "first_iteration.py: a layout is missing"
    assert max(found["first iteration"].values()) <= FIRST_TOLERANCE


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
        if isinstance(value, dict):  # null as a default, of which an instance makes this and more
            assert value.items() <= made.items(), key
            continue
        # The field's default: instances without windows have none.
        assert getattr(config_class, key, made) == value, key
