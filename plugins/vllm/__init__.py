"""Steering inside of vLLM, per request. Nothing of it is imported unless vLLM runs."""
