"""What a vector was made from."""

from dataclasses import dataclass

from engrain.core.contrast import PairSet


@dataclass(frozen=True)
class Training:
    """What a vector was made from: its label-shuffled control is made from it, and advice.

    Attributes:
        pairs: the pairs.
        positions: what stood for a reply.
        gradients: whether it was made from gradients.
    """

    pairs: PairSet
    positions: str = "response-mean"
    gradients: bool = False
