"""Format alignment (paper section 2.3): supervised fine-tuning and direct preference optimization."""
