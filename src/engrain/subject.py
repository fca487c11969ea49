"""What a vector is made from and tested on: a behavior's splits, or the pairs that a published vector records."""

from dataclasses import dataclass, field, replace
from typing import Self

from engrain.core.brief import Brief
from engrain.core.budget import Budget
from engrain.core.contrast import PairSet, split_of
from engrain.core.errors import InputError, UnknownNameError
from engrain.plugins.behavior import Behavior
from engrain.plugins.manager import Plugins
from engrain.registry.store import Store
from engrain.registry.vectors import read_pairs, read_vector

# Where most behaviors are found; a behavior may declare its own.
_DEPTH = (0.5, 0.7)


@dataclass(frozen=True)
class Subject:
    """A behavior by name, with its data.

    Attributes:
        name: what it and its vector are called.
        train: pairs the vector is made from.
        calibration: pairs that choose the dose.
        test: pairs that the verdict comes from, or None where every pair there is was extracted from.
        prompts: users' messages for free replies, unseen.
        scenarios: users' messages of the train and the calibration split; a compiler learns from replies to them.
        brief: the behavior in words, or None.
        depth: which blocks to look at, as shares of the model's depth.
        positions: what stands for a reply in extraction.
        method: the estimator's name.
        scorers: what is measured besides the margin, by name.
        budget: of side effects.
    """

    name: str
    train: PairSet
    calibration: PairSet
    test: PairSet | None
    prompts: tuple[str, ...]
    scenarios: tuple[str, ...] = ()
    brief: Brief | None = None
    depth: tuple[float, float] = _DEPTH
    positions: str = "response-mean"
    method: str = "mean-difference"
    scorers: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def of_behavior(cls, behavior: Behavior) -> Self:
        """Return a behavior's splits."""
        pairs = behavior.pairs()
        prompts = [one.prompt for one in behavior.scenarios()]
        return cls(
            behavior.name,
            pairs.split("train"),
            pairs.split("calibration"),
            pairs.split("test"),
            tuple(prompt for prompt in prompts if split_of(prompt) == "test"),
            tuple(prompt for prompt in prompts if split_of(prompt) != "test"),
            behavior.brief,
            behavior.depth,
            behavior.positions,
            behavior.method,
            behavior.scorers,
            behavior.budget,
        )

    @classmethod
    def of_record(cls, store: Store, name: str) -> Self:
        """Return the pairs that the highest version of ``vector/name`` was made from; none of them is unseen.

        Raises:
            InputError: the version records none.
        """
        version = store.resolve(name, default_kind="vector")
        pairs, origin = read_pairs(store, version), read_vector(store, version.reference).origin
        return cls(
            name,
            pairs,
            pairs.split("calibration"),
            None,
            (),
            positions=str(origin.get("positions", cls.positions)),
            method=str(origin.get("method", cls.method)),
        )

    def tested_on(self, pairs: PairSet) -> Self:
        """Return the subject with other test pairs, which its vector has not seen.

        Raises:
            InputError: a pair that the vector was made from or calibrated on is among them.
        """
        seen = {(pair.messages, pair.positive) for pair in (*self.train, *self.calibration)}
        leaked = next((pair for pair in pairs if (pair.messages, pair.positive) in seen), None)
        if leaked is not None:
            raise InputError(
                f"{pairs.source}: the pair {leaked.id or leaked.positive[:40]!r} was used to make the vector; "
                f"a verdict needs unseen pairs. Take it out."
            )
        prompts = self.prompts or tuple(dict.fromkeys(pair.messages[-1].content for pair in pairs.ordinary))
        return replace(self, test=pairs, prompts=prompts)

    def check_prompts(self) -> None:
        """Check that a behavior has unseen scenarios to reply freely to; those of pairs alone are the pairs' own.

        Raises:
            InputError: it has none.
        """
        if self.brief is not None and not self.prompts:
            raise InputError(
                f"'{self.name}' has {len(self.scenarios)} scenarios and none of them in the test split, so that there "
                f"is nothing unseen to reply freely to. Add scenarios: by the hash of their prompts three in ten fall "
                f"there."
            )

    def layers(self, count: int) -> tuple[int, ...]:
        """Return the blocks to look at in a model of ``count`` blocks: five at most, evenly spread."""
        low, high = (round(share * (count - 1)) for share in self.depth)
        layers = range(low, high + 1)
        # Neighbors differ little.
        return tuple(layers[:: -(-len(layers) // 5)])


def find_subject(plugins: Plugins, store: Store, name: str) -> Subject:
    """Return the behavior of that name, or else what the published vector of that name records.

    Raises:
        UnknownNameError: there is neither.
        InputError: the vector records no pairs.
    """
    behaviors, vectors = plugins.behaviors(), store.names("vector")
    if name in behaviors:
        return Subject.of_behavior(behaviors[name][0])
    if name not in vectors:
        raise UnknownNameError("behavior or vector", name, [*behaviors, *vectors], plugins.why_missing)
    return Subject.of_record(store, name)
