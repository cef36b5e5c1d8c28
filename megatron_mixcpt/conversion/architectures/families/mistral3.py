"""Mistral Small 3.1 and 3.2: Mistral beside a vision tower."""

from megatron_mixcpt.conversion.architectures.mistral import MISTRAL
from megatron_mixcpt.conversion.architectures.text_tower import text_tower

MISTRAL3 = text_tower(
    "Mistral3ForConditionalGeneration",
    {"mistral": MISTRAL},
    models="Mistral Small 3.1, 3.2, Magistral Small",
)
