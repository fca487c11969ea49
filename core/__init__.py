"""The engine: pairs to direction to dose to verdict to weights. Imports nothing else of engrain."""
