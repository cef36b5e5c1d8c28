"""How layers are divided over pipeline stages, by every way that the engine knows; the expected numbers are by hand."""

from typing import Any

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.pipeline_stages import stages_of

PP, VP = "pipeline_model_parallel_size", "num_virtual_stages_per_pipeline_rank"
PER_CHUNK, LAYOUT = "num_layers_per_virtual_pipeline_stage", "pipeline_model_parallel_layout"
FIRST, LAST = "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"
EMBEDDING, LOSS = "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[8]]),
        ({PP: 4}, [[2], [2], [2], [2]]),
        ({PP: 2, VP: 2}, [[2, 2], [2, 2]]),
        ({PP: 2, VP: 1}, [[4], [4]]),
        ({PP: 2, PER_CHUNK: 1}, [[1] * 4, [1] * 4]),
        ({PP: 2, PER_CHUNK: 4}, [[4], [4]]),
        ({PP: 2, FIRST: 3}, [[3], [5]]),
        ({PP: 4, FIRST: 1, LAST: 3}, [[1], [2], [2], [3]]),
        ({PP: 2, FIRST: 2, LAST: 6, VP: 2}, [[1, 1], [3, 3]]),
        ({FIRST: 8}, [[8]]),
        ({PP: 5, EMBEDDING: True, LOSS: True}, [[1], [2], [2], [2], [1]]),
        ({PP: 3, LOSS: True}, [[3], [3], [2]]),
        ({PP: 3, EMBEDDING: True, PER_CHUNK: 1}, [[0, 1, 1], [1, 1, 1], [1, 1, 1]]),
        ({EMBEDDING: True, LOSS: True}, [[8]]),
        ({PP: 2, LAYOUT: "Ettt|t*5L"}, [[3], [5]]),
        ({PP: 2, LAYOUT: "E,(t|)*2,ttt|tttL"}, [[1, 3], [1, 3]]),
        ({PP: 3, LAYOUT: "E|(tt)*4|L"}, [[0], [8], [0]]),
    ],
)
def test_layers_of_each_chunk(settings: dict[str, Any], expected: list[list[int]]) -> None:
    assert stages_of({"num_layers": 8, **settings}) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({PP: 3}, "--pipeline-model-parallel-size 3 does not divide the model's 8 layers: choose 2 or 4"),
        ({PP: 16}, "choose 8$"),
        ({PP: 4, LOSS: True}, "4 does not divide 9, .* 8 layers and what --account-for-loss.* as one: choose 3 or 9"),
        ({PP: 10, EMBEDDING: True, LOSS: True, VP: 2}, "2 does not divide the 1 layers of each pipeline stage"),
        ({VP: 2}, "2 chunks of layers on each rank need --pipeline-model-parallel-size 2 or more"),
        ({PER_CHUNK: 4}, "2 chunks of layers on each rank need --pipeline-model-parallel-size 2 or more"),
        ({PP: 2, VP: 3}, "--num-virtual-stages-per-pipeline-rank 3 does not divide the 4 layers .*: choose 2 or 4"),
        ({PP: 2, PER_CHUNK: 3}, "3 does not divide the 4 layers of each pipeline stage .*: choose 2 or 4"),
        ({PP: 2, VP: 2, PER_CHUNK: 2}, "both say how layers are divided"),
        ({PP: 2, FIRST: 3, LOSS: True}, "--decoder-first-.* 3 and --account-for-loss-in-pipeline-split both say"),
        ({PP: 2, FIRST: 4, PER_CHUNK: 2}, "give one of them, or --num-virtual-stages-per-pipeline-rank"),
        ({PP: 2, FIRST: 3, LAST: 4}, "leaves 1 of the model's 8 layers, .* 0 other pipeline stages: change one of"),
        ({PP: 2, FIRST: 8}, "leaves 0 of the model's 8 layers, .* over the 1 other pipeline stages: change it"),
        ({PP: 3, FIRST: 9}, "leaves -1 of"),
        ({PP: 3, LAST: 3}, "leaves 5 of the model's 8 layers, which cannot be divided over the 2 other"),
        ({PP: 2, LAST: 0}, "--decoder-last-pipeline-num-layers 0: must be greater than 0"),
        ({FIRST: 4, LAST: 4}, "needs --pipeline-model-parallel-size 2 or more, not 1"),
        ({PP: 2, FIRST: 3, VP: 2}, "2 does not divide the 3 layers of the first stage: choose 1 or 3"),
        ({PP: 2, LAYOUT: "Ettt|ttttL"}, "has 7 layers .t., and the model 8"),
        ({PP: 2, LAYOUT: "Ettt|tt|tttL"}, "has 3 parts, no multiple of --pipeline-model-parallel-size 2"),
        ({PP: 2, LAYOUT: "tEttt|ttttL"}, "must have one E, at its start, and one L, at its end"),
        ({PP: 2, LAYOUT: "|Et*8L"}, "must have one E, at its start"),
        ({PP: 2, LAYOUT: "Ettt|ttmtttL"}, "has m, and only E"),
        ({LAYOUT: "Et*4|t*4L"}, "need --pipeline-model-parallel-size 2 or more"),
        ({PP: 2, LAYOUT: "Et*4|t*4L", LOSS: True}, "Et.*L and --account-for-loss-in-pipeline-split both say"),
    ],
)
def test_layers_that_cannot_be_divided(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages_of({"num_layers": 8, **settings})
