"""The work of preprocessing cut into parts: planned, done by one process or many, kept for a resumed run."""
