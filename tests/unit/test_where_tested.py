"""Every module's test is found from its name, or the table below says where it is tested."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.unit.test_imports import imports_of, module_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_mixcpt"

# Module or folder below megatron_mixcpt/ -> what tests it, where tests/unit/FOLDER/test_MODULE.py does not exist.
# The longest matching row counts; paths are below tests/.
TESTED_IN = {
    "conversion/adapters/": "unit/conversion/adapters/test_peft_export.py",
    "adapters/": "distributed/test_lora.py",
    "conversion/": "unit/conversion/test_convert.py",
    "conversion/architectures/": "unit/conversion/test_convert.py",
    "data/chat/renderer_process.py": "unit/data/chat/test_renderer.py",
    "data/chat/dialogue.py": "unit/data/chat/test_written.py",
    "data/chat/dialogue_encoder.py": "unit/data/chat/test_encoding.py",
    "data/chat/refusals.py": "unit/data/chat/test_encoding.py",
    "data/chat/special_tokens.py": "unit/data/chat/test_encoding.py",
    "data/chat/templates.py": "unit/data/chat/test_encoding.py",
    "data/datasets/": "distributed/test_pretrain.py distributed/test_alignment_training.py",
    "data/datasets/whole_indices.py": "faults/test_power_cuts.py",
    "data/preprocessing/": "integration/test_preprocess.py integration/test_preprocess_options.py",
    "data/preprocessing/parts/": "integration/test_preprocess_options.py integration/test_preprocess_interrupted.py",
    "data/reading/": "unit/data/preprocessing/test_sample_maker.py",
    "data/reading/record_flags.py": "unit/test_paper_commands.py",
    "data/reading/parts.py": "unit/data/reading/formats/test_registry.py integration/test_preprocess_options.py",
    "data/reading/field_names.py": "unit/data/reading/rows/test_make_record.py",
    "data/reading/rows/row_fields.py": "unit/data/reading/rows/test_make_record.py",
    "data/reading/held_out_names.py": "unit/data/reading/test_sources.py",
    "data/reading/formats/": "unit/data/reading/test_readers.py",
    "distillation/": "distributed/test_pretrain.py distributed/test_alignment_training.py",
    "evaluation/code_jail.py": "unit/evaluation/test_code_runner.py",
    "evaluation/evaluate.py": "distributed/test_evaluate.py",
    "evaluation/judge.py": "unit/evaluation/test_mt_bench.py",
    "evaluation/models/endpoint.py": "unit/evaluation/models/test_server.py",
    "evaluation/models/server_settings.py": "unit/evaluation/test_settings.py",
    "evaluation/suites.py": "unit/evaluation/test_task_data.py",
    "evaluation/tasks/": "unit/evaluation/test_code_runner.py",
    "inference/": "distributed/test_evaluate.py distributed/test_conversion_verify.py",
    "log_names.py": "unit/training/pretraining/test_forgetting.py",
    "losses/": "unit/losses/test_lssd.py",
    "models/auxiliary_losses.py": "unit/models/test_router.py distributed/test_experts_training.py",
    "models/context_parallel.py": "distributed/test_context_parallel_attention.py",
    "models/delta_net/documents.py": "unit/models/delta_net/test_convolution.py",
    "models/delta_net/gated_delta_net.py": "distributed/test_families.py",
    "models/layer_options/": "unit/models/layer_options/test_branches.py",
    "models/mlp_builder.py": "unit/models/test_biases.py unit/models/test_layer_specs.py",
    "models/query_blocks.py": "unit/models/test_sliding_window.py unit/models/test_attention.py",
    "named_paths.py": "unit/evaluation/test_settings.py",
    "planning/": "unit/planning/test_memory.py",
    "planning/layers.py": "unit/planning/test_shapes.py",
    "report/": "unit/report/test_page.py",
    "selection/": "distributed/test_score_alignment.py",
    "terminal.py": "unit/training/engine/test_rank_logs.py",
    "torchrun_report.py": "distributed/test_terminal.py",
    "training/lora/": "distributed/test_lora.py",
    "training/alignment/": "distributed/test_alignment_training.py",
    "training/engine/": "distributed/test_refusals.py distributed/test_faults.py",
    "training/pretraining/": "distributed/test_pretrain.py distributed/test_ablations.py",
    "training/router_losses.py": "distributed/test_experts_training.py",
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    """``losses/lssd.py``."""
    return path.relative_to(PACKAGE).as_posix()


def namesake(path: Path) -> Path:
    """``losses/lssd.py`` -> ``tests/unit/losses/test_lssd.py``."""
    inside = path.relative_to(PACKAGE)
    return ROOT / "tests/unit" / inside.parent / f"test_{inside.name}"


def row_of(path: Path) -> str | None:
    """The row of the table that counts for a module without a namesake."""
    rows = [row for row in TESTED_IN if row == name_of(path) or (row.endswith("/") and name_of(path).startswith(row))]
    return max(rows, key=len, default=None)


def where_tested(path: Path) -> list[Path]:
    """The files that test a module."""
    if namesake(path).is_file():
        return [namesake(path)]
    row = row_of(path)
    return [ROOT / "tests" / name for name in TESTED_IN[row].split()] if row else []


@cache
def files() -> dict[str, Path]:
    """Dotted name -> file, of the package, the tests, the tools and the examples."""
    folders = ("megatron_mixcpt", "tests", "tools", "examples", "benchmarks")
    return {module_name(path): path for folder in folders for path in (ROOT / folder).rglob("*.py")}


@cache
def imported_by(path: Path) -> frozenset[Path]:
    """The files of the repository that a file imports."""
    names = {name for imported, _ in imports_of(path) for name in (imported, imported.rpartition(".")[0])}
    return frozenset(files()[name] for name in names & files().keys())


def reached_from(path: Path) -> set[Path]:
    """Every file of the repository that importing ``path`` can lead to."""
    found, pending = {path}, [path]
    while pending:
        new = imported_by(pending.pop()) - found
        found |= new
        pending += new
    return found


def runs_commands(test: Path) -> bool:
    """Whether a test, or a helper of the tests that it imports, starts our tools as commands."""
    helpers = {path for path in imported_by(test) if "tests" in path.relative_to(ROOT).parts}
    texts = (path.read_text(encoding="utf-8") for path in {test, *helpers})
    return any(re.search(r"subprocess|torchrun|[\"'/]tools/", text) for text in texts)


def covers(test: Path, module: Path) -> bool:
    """Whether a test can reach a module: through its imports, or because it runs commands."""
    return module in reached_from(test) or runs_commands(test)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_has_a_test(path: Path) -> None:
    tests = where_tested(path)
    assert tests, f"write {namesake(path).relative_to(ROOT)}, or name what tests {name_of(path)} in TESTED_IN"
    names = [test.relative_to(ROOT).as_posix() for test in tests]
    assert all(test.is_file() for test in tests), f"{name_of(path)}: not all of {names} are there"
    assert any(covers(test, path) for test in tests), f"no import of {names} leads to {name_of(path)}"


def test_the_table_has_no_stale_row() -> None:
    used = {row_of(path) for path in MODULES if not namesake(path).is_file()}
    assert not TESTED_IN.keys() - used, "these modules are gone, or their tests are found by name: remove the rows"


def test_a_test_that_leads_elsewhere_is_found() -> None:
    module = PACKAGE / "losses/lssd.py"
    assert covers(ROOT / "tests/unit/losses/test_lssd.py", module)
    assert not covers(ROOT / "tests/unit/data/test_records.py", module)
