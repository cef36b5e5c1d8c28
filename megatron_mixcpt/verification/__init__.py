"""A model folder and its conversion, checked: the folder alone, the checkpoint's bits, and the forward pass."""
