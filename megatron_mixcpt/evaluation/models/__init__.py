"""What answers lm-eval's questions and MT-Bench's: the model in this process, or on all ranks, or behind a server."""
