"""What a run will take, on paper, before any machine is asked for it."""
