"""The choice of experts from the best groups, beside transformers' routers: DeepSeek-V3's and DeepSeek-V2's."""

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from megatron_mixcpt.models.layer_options.expert_groups import ExpertGroups

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 1,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
}


@pytest.mark.parametrize("num_scored", [1, 2])
def test_it_chooses_as_transformers_does(num_scored):
    torch.manual_seed(0)
    if num_scored == 2:
        router = DeepseekV3TopkRouter(DeepseekV3Config(**SIZES))
        router.e_score_correction_bias.normal_()
    else:
        router = DeepseekV2TopkRouter(DeepseekV2Config(**SIZES, topk_method="group_limited_greedy"))
    router.weight.data.normal_()
    logits, _, expected = router(torch.randn(200, 16))
    scores = logits.sigmoid() + router.e_score_correction_bias if num_scored == 2 else logits.softmax(-1)
    best, chosen = ExpertGroups(num_scored).get_replay_topk(scores, 3, 4, 2, None)
    assert chosen.sort(-1).values.equal(expected.sort(-1).values)
    assert best.equal(scores.gather(1, chosen))
