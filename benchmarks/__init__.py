"""Measurements, both sides in one run. ``python -m benchmarks.run`` runs them all."""
