"""Mix-CPT on Megatron: knowledge mixture continual pre-training with logit swap self-distillation."""

__version__ = "0.1.0"
