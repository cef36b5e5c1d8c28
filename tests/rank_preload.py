"""What the trainers import, imported once: ``megatron_mixcpt.testing`` forks each rank from a process that has it.

A rank would otherwise spend several seconds of processor time on these imports, and the suite starts some hundred
ranks. Nothing here may start a thread or read what a test sets.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

import megatron.training.training  # noqa: E402, F401
import torch._inductor.compile_fx  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401
import transformers.models.qwen2.modeling_qwen2  # noqa: E402, F401

import megatron_mixcpt.training.alignment.dpo  # noqa: E402, F401
import megatron_mixcpt.training.alignment.sft  # noqa: E402, F401
import megatron_mixcpt.training.pretraining.cpt  # noqa: E402, F401
