"""What a server of forked ranks imports once: the emulation, the engine and all trainings."""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

from megatron_mixcpt.training.alignment import dpo, sft  # noqa: E402, F401
from megatron_mixcpt.training.pretraining import cpt  # noqa: E402, F401
