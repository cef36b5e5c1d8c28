"""A mixture on disk and what a run draws from it: .bin/.idx pairs, mixture.json, the plan. NumPy only."""
