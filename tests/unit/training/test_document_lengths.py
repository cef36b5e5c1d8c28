"""Rows of documents are refused where their lengths would ask for different rotary embeddings."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.options import ModelOptions, PositionScale
from megatron_mixcpt.training.document_lengths import check_document_lengths
from tests.unit.conversion.architectures.test_rope import LONGROPE, folder_with


@pytest.mark.parametrize("rope", [LONGROPE, {"rope_type": "dynamic", "factor": 2.0}])
def test_rows_above_the_length_of_short_documents(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = read_config(folder_with(tmp_path, "llama", {"rope_parameters": rope}))
    check_document_lengths(model.options, model.folder, 64, "--document-masking")
    with pytest.raises(ConfigError, match="--seq-length 65 with --document-masking: .* --seq-length 64 at most"):
        check_document_lengths(model.options, model.folder, 65, "--document-masking")


def test_most_embeddings_are_the_same_at_every_length(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0}
    model = read_config(folder_with(tmp_path, "llama", {"rope_parameters": rope}))
    check_document_lengths(model.options, model.folder, 10_000, "--document-masking")


def test_queries_that_grow_with_their_place(tmp_path: Path) -> None:
    options = ModelOptions(position_scale=PositionScale(0.1, 16))
    check_document_lengths(options, tmp_path, 16, "--document-masking")
    with pytest.raises(ConfigError, match="--seq-length 17 with --document-masking: queries .* give --seq-length 16"):
        check_document_lengths(options, tmp_path, 17, "--document-masking")
