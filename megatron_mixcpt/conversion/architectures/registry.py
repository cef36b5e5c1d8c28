"""The supported families of models, by their name in ``config.json``. Add yours here."""

from megatron_mixcpt.conversion.architectures.families.apertus import APERTUS
from megatron_mixcpt.conversion.architectures.families.arcee import ARCEE
from megatron_mixcpt.conversion.architectures.families.cohere import COHERE, COHERE2
from megatron_mixcpt.conversion.architectures.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from megatron_mixcpt.conversion.architectures.families.ernie4_5 import ERNIE4_5
from megatron_mixcpt.conversion.architectures.families.exaone4 import EXAONE4
from megatron_mixcpt.conversion.architectures.families.gemma import GEMMA2, GEMMA3
from megatron_mixcpt.conversion.architectures.families.glm4 import GLM4
from megatron_mixcpt.conversion.architectures.families.glm4_moe import GLM4_MOE
from megatron_mixcpt.conversion.architectures.families.gpt_oss import GPT_OSS
from megatron_mixcpt.conversion.architectures.families.granite import GRANITE, GRANITE_MOE
from megatron_mixcpt.conversion.architectures.families.mistral import MINISTRAL, MINISTRAL3, MISTRAL
from megatron_mixcpt.conversion.architectures.families.nemotron import NEMOTRON
from megatron_mixcpt.conversion.architectures.families.olmo import OLMO2, OLMO3
from megatron_mixcpt.conversion.architectures.families.phi3 import PHI3
from megatron_mixcpt.conversion.architectures.families.qwen2 import QWEN2
from megatron_mixcpt.conversion.architectures.families.qwen2_moe import QWEN2_MOE
from megatron_mixcpt.conversion.architectures.families.qwen3_5 import QWEN3_5
from megatron_mixcpt.conversion.architectures.families.qwen3_5_moe import QWEN3_5_MOE
from megatron_mixcpt.conversion.architectures.families.qwen3_next import QWEN3_NEXT
from megatron_mixcpt.conversion.architectures.families.seed_oss import SEED_OSS
from megatron_mixcpt.conversion.architectures.families.smollm3 import SMOLLM3
from megatron_mixcpt.conversion.architectures.families.starcoder2 import STARCODER2
from megatron_mixcpt.conversion.architectures.families.towers import GEMMA3_TOWER, MISTRAL3, QWEN3_5_TOWER
from megatron_mixcpt.conversion.architectures.llama import LLAMA
from megatron_mixcpt.conversion.architectures.mixtral import MIXTRAL
from megatron_mixcpt.conversion.architectures.qwen3 import QWEN3
from megatron_mixcpt.conversion.architectures.qwen3_moe import QWEN3_MOE

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        LLAMA,
        MISTRAL,
        MINISTRAL,
        MINISTRAL3,
        QWEN2,
        QWEN3,
        SMOLLM3,
        PHI3,
        MIXTRAL,
        QWEN3_MOE,
        QWEN2_MOE,
        OLMO2,
        OLMO3,
        GLM4,
        SEED_OSS,
        ERNIE4_5,
        EXAONE4,
        QWEN3_5,
        GEMMA2,
        GEMMA3,
        GRANITE,
        GRANITE_MOE,
        COHERE2,
        COHERE,
        STARCODER2,
        NEMOTRON,
        ARCEE,
        GLM4_MOE,
        MISTRAL3,
        GEMMA3_TOWER,
        QWEN3_5_TOWER,
        GPT_OSS,
        APERTUS,
        QWEN3_NEXT,
        QWEN3_5_MOE,
        DEEPSEEK_V3,
        DEEPSEEK_V2,
    )
}
