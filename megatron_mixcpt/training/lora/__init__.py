"""What a training with adapters decides beside the adapters themselves: its flags, its record, a line about it."""
