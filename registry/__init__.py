"""Versions of vectors, datasets, verdicts and task vectors. Imports core."""
