"""Tiny things to compile, for the tests of training."""

import torch

from engrain.core.compile.compiler import Order
from engrain.core.compile.corpus import Corpus
from engrain.core.compile.recipe import Recipe
from engrain.core.composition import Active, activate
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.vector import SteeringVector
from tiny import byte_tokenizer, random_model

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(3))


def texts(low: int, count: int, seed: int) -> tuple[Encoded, ...]:
    """Texts of letters from ``low`` on, so that scope and retain do not look alike."""
    drawn = torch.randint(low, low + 24, (count, 10), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(Encoded(tuple(row[:4]), tuple(row[4:])) for row in drawn)


CORPUS = Corpus(texts(20, 60, 0), texts(120, 60, 1), texts(20, 20, 2), texts(120, 20, 3))


def fresh(family: str = "llama", dtype: torch.dtype = torch.float32) -> SteerableModel:
    return SteerableModel(random_model(family, dtype), byte_tokenizer(), f"tiny {family}")


def active(layer: int = 1) -> Active:
    return activate(SteeringVector({layer: DIRECTION}, "v"), layer, 1.5)


ORDER = Order("v", (active(),), "selective", CORPUS, recipe=Recipe(rate=3e-3, rank=8, steps=30))
