"""Multimodal models whose language model is trained: which text families they hold, under which names."""

from megatron_mixcpt.conversion.architectures.families.gemma import GEMMA3
from megatron_mixcpt.conversion.architectures.families.mistral import MINISTRAL3, MISTRAL
from megatron_mixcpt.conversion.architectures.families.qwen3_5 import QWEN3_5
from megatron_mixcpt.conversion.architectures.tensor_names import INSIDE, OUTSIDE
from megatron_mixcpt.conversion.architectures.text_tower import text_tower

MISTRAL3 = text_tower(
    "Mistral3ForConditionalGeneration",
    {"mistral": MISTRAL, "ministral3": MINISTRAL3},
    tied=True,
    models="Mistral Small 3.1 and 3.2, Magistral Small, Ministral 3",
)

GEMMA3_TOWER = text_tower(
    "Gemma3ForConditionalGeneration", {"gemma3_text": GEMMA3}, tied=True, models="Gemma 3 4B, 12B and 27B"
)

QWEN3_5_TOWER = text_tower(
    "Qwen3_5ForConditionalGeneration",
    {"qwen3_5_text": QWEN3_5},
    tied=False,
    models="Qwen3.5 4B to 27B",
    names=(INSIDE, OUTSIDE),
)
