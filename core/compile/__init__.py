"""Behaviors into weights: what is trained, on what, and what that takes."""
