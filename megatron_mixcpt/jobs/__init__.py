"""What long jobs share: digests, progress, outputs that are complete or absent, a folder to resume in, ranks."""
