"""What wraps the engine's training loop: its arguments, changes to it, checkpoints, signals and launch."""
