"""What a server of forked ranks imports once: the emulation, the engine and what runs on several ranks."""

import tests.rank_preload  # noqa: F401, I001 - the emulation comes first

import megatron_mixcpt.evaluation.tool  # noqa: F401
import megatron_mixcpt.selection.score_tool  # noqa: F401
