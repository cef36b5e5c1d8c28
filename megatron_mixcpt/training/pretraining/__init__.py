"""Knowledge mixture continual pre-training (paper section 2.2): arguments, data, loss and validation."""
