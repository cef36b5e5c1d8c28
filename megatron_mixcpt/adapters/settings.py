"""Settings of low-rank adapters, under the names and with the meaning that they have in PEFT."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from megatron_mixcpt.adapters.targets import DEFAULT_TARGETS, TARGETS
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting

DEFAULT_ALPHA = 16.0


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """Low-rank adapters (LoRA, Hu et al. 2021): train W + scale * B A instead of W, which stays frozen."""

    lora_rank: int | None = None
    """Train adapters of this rank (rows of A, columns of B) instead of the model, whose weights stay frozen. With its
    adapters off the model is its own teacher, or DPO's reference: there is no second copy. Learning rates are ten times
    those of full training unless given. Default: train the model."""

    lora_alpha: float = DEFAULT_ALPHA
    """The adapters' product is multiplied by alpha / rank. With the same alpha at every rank, the same learning rate
    suits."""

    lora_dropout: float = 0.0
    """Probability with which a channel of an adapter's input is zero in training."""

    lora_target_modules: str = setting(default=",".join(DEFAULT_TARGETS), metavar="NAMES")
    """The linear layers that get an adapter, by the engine's names, separated by commas. Routed experts get none."""

    lora_use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, Kalajdzievski 2023)."""

    lora_adapter: str | None = setting(default=None, metavar="DIR")
    """Start from the adapters of this PEFT folder, which also gives their rank, alpha, dropout and target modules."""

    def __post_init__(self) -> None:
        if self.lora_adapter is not None or self.lora_rank is None:
            self._check_no_flag_is_ignored()
            return
        if self.lora_rank < 1:
            raise ConfigError(f"--lora-rank {self.lora_rank}: must be positive, the rank of the adapters")
        if not 0.0 < self.lora_alpha < math.inf:
            raise ConfigError(f"--lora-alpha {self.lora_alpha}: must be positive")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError(f"--lora-dropout {self.lora_dropout}: must be at least 0 and below 1, a probability")
        if unknown := [name for name in self.targets if name not in TARGETS]:
            raise ConfigError(
                f"--lora-target-modules {self.lora_target_modules}: {unknown[0] or 'an empty name'} cannot have an "
                f"adapter; choose from {', '.join(TARGETS)}"
            )

    def _check_no_flag_is_ignored(self) -> None:
        """A flag that has no effect is a misunderstanding."""
        given = {
            "--lora-rank": self.lora_rank is not None,
            "--lora-alpha": self.lora_alpha != DEFAULT_ALPHA,
            "--lora-dropout": self.lora_dropout != 0.0,
            "--lora-target-modules": self.lora_target_modules != ",".join(DEFAULT_TARGETS),
            "--lora-use-rslora": self.lora_use_rslora,
        }
        for flag in (flag for flag, is_given in given.items() if is_given):
            if self.lora_adapter is not None:
                raise ConfigError(f"{flag}: --lora-adapter {self.lora_adapter} says it already; remove {flag}")
            raise ConfigError(f"{flag} has no effect without adapters: add --lora-rank, or remove it")

    @property
    def is_given(self) -> bool:
        """Whether adapters are trained."""
        return self.lora_rank is not None or self.lora_adapter is not None

    @property
    def targets(self) -> tuple[str, ...]:
        """``lora_target_modules``, one by one."""
        return tuple(name.strip() for name in self.lora_target_modules.split(","))

    def missing_from(self, there: Collection[str]) -> str | None:
        """The first target that is not among those that a model has; None: nothing that somebody chose is missing.

        Of the default targets some may be: experts in the place of every MLP leave attention.
        """
        chosen = self.targets if self.targets != DEFAULT_TARGETS else DEFAULT_TARGETS[:1]
        return next((name for name in chosen if name not in there), None)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        assert self.lora_rank is not None
        return self.lora_alpha / (math.sqrt(self.lora_rank) if self.lora_use_rslora else self.lora_rank)
