"""What a compiler learns from, gathered from the data of behaviors; nothing of a test split is among it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from platformdirs import user_cache_path
from rich.progress import Progress

from engrain.core.compile.corpus import RETAIN, Corpus
from engrain.core.compile.trajectories import sample_trajectories
from engrain.core.composition import Active
from engrain.core.contrast import ContrastPair, Message, Split, split_of
from engrain.core.generate import AT_ONCE
from engrain.core.model import SteerableModel
from engrain.core.neutral import read_neutral
from engrain.core.packing import Encoded
from engrain.core.progress import Count
from engrain.core.steps import Steps
from engrain.subject import Subject
from engrain.version import __version__

Messages = tuple[Message, ...]

# How many conversations the teacher replies to at most.
_CONVERSATIONS: dict[Split, int] = {"train": 128, "calibration": 16}
# How many texts are held out of what else is in scope, and of what is not: training looks at them all the time.
_HELD, _HELD_RETAIN = 16, 32


def gather_corpus(
    model: SteerableModel,
    subjects: Sequence[Subject],
    actives: Sequence[Active],
    *,
    seed: int,
    bar: Progress,
    say: Callable[[str], None],
) -> Corpus:
    """Return the texts that behaviors are compiled from together.

    Scope are replies that the model gives under all vectors at once, to scenarios and to the conversations of pairs,
    and both replies of the pairs. To be retained are shipped texts and both replies of boundary pairs. What is trained
    on is of the train split, what is held out of the calibration split. Sampled replies are kept in the user's cache,
    so that an interrupted run goes on, and another backend learns from the same.

    Args:
        model: the base.
        subjects: the behaviors, with their splits.
        actives: their vectors in use.
        seed: of the sampling.
        bar: shows how many replies were sampled.
        say: tells a person what is done.
    """
    chosen = {split: _conversations(subjects, split) for split in _CONVERSATIONS}
    steps = _steps(model, actives, chosen, seed)
    task = bar.add_task("sample replies", total=sum(map(len, chosen.values())))
    say(f"sampling replies to {sum(map(len, chosen.values()))} conversations")
    sampled = {
        split: _sample(model, actives, chosen[split], split, seed, steps, lambda done: bar.update(task, advance=done))
        for split in chosen
    }
    kept = sum(map(len, sampled.values()))
    say(f"{kept} replies are fluent enough to learn from")
    parts: list[tuple[Encoded, ...]] = []
    limits: dict[Split, tuple[int | None, int | None]] = {"train": (None, None), "calibration": (_HELD, _HELD_RETAIN)}
    for split, (of_scope, of_retain) in limits.items():
        pairs = _pairs(subjects, split)
        ordinary, boundary = (
            _both(model, [pair for pair in pairs if pair.boundary is wanted]) for wanted in (False, True)
        )
        shipped = [*read_neutral(model, RETAIN, split), *read_neutral(model, split=split)]
        # Twice, at the cost of once: the raw texts are twice as long, and chat turns are what is nearest to the scope.
        shipped += [one for one in shipped if one.prompt]
        parts += [
            (*sampled[split], *_spread(ordinary, of_scope)),
            tuple(_spread([*shipped, *boundary], of_retain)),
        ]
    scope, retain, held_scope, held_retain = parts
    return Corpus(scope, retain, held_scope, held_retain)


def _spread(texts: Sequence[Encoded], limit: int | None) -> Sequence[Encoded]:
    """Return at most so many of the texts, from everywhere among them."""
    if limit is None or len(texts) <= limit:
        return texts
    return [texts[place * len(texts) // limit] for place in range(limit)]


def _pairs(subjects: Sequence[Subject], split: Split) -> list[ContrastPair]:
    """Return the pairs of a split, those left out whose conversation stands in a test split too."""
    unseen = _unseen(subjects)
    # A vector made from every pair that there is has them all as its train pairs, those of the other splits too.
    own = [subject.train.split("train") if split == "train" else subject.calibration for subject in subjects]
    return [pair for pairs in own for pair in pairs if pair.messages not in unseen]


def _conversations(subjects: Sequence[Subject], split: Split) -> list[Messages]:
    unseen = _unseen(subjects)
    messages: list[Messages] = [
        (Message("user", one),) for subject in subjects for one in subject.scenarios if split_of(one) == split
    ]
    found = {one for one in messages if one not in unseen}
    found |= {pair.messages for pair in _pairs(subjects, split) if not pair.boundary}
    # By hash: which ones a limit leaves out has nothing to do with where they stand in a file.
    return sorted(found, key=lambda one: hashlib.sha256(repr(one).encode()).digest())[: _CONVERSATIONS[split]]


def _unseen(subjects: Sequence[Subject]) -> set[Messages]:
    found: set[Messages] = {(Message("user", prompt),) for subject in subjects for prompt in subject.prompts}
    return found | {pair.messages for subject in subjects for pair in subject.test or ()}


def _both(model: SteerableModel, pairs: Iterable[ContrastPair]) -> list[Encoded]:
    return [one for pair in pairs for one in model.encode_pair(pair)]


def _sample(
    model: SteerableModel,
    actives: Sequence[Active],
    conversations: Sequence[Messages],
    split: Split,
    seed: int,
    steps: Steps,
    progress: Count,
) -> list[Encoded]:
    teacher = partial(model.steer, *actives)
    found: list[Encoded] = []
    # What was sampled is kept after each batch.
    for first in range(0, len(conversations), AT_ONCE):
        chunk = conversations[first : first + AT_ONCE]

        def work(first: int = first, chunk: Sequence[Messages] = chunk) -> list[list[object]]:
            made = sample_trajectories(model, chunk, teacher, seed=seed + first)
            return [[one.number, list(one.sequence.reply)] for one in made]

        kept = steps.do(f"{split} {first}", work)
        found += [Encoded(model.render(chunk[number]), tuple(reply)) for number, reply in kept]
        progress(len(chunk))
    return found


def _steps(model: SteerableModel, actives: Sequence[Active], chosen: dict[Split, list[Messages]], seed: int) -> Steps:
    vectors = [[hashlib.sha256(one.vector.to_safetensors()).hexdigest(), one.to_json()] for one in actives]
    made_on = {name: value for name, value in model.fingerprint.to_json().items() if name != "source"}
    conversations = hashlib.sha256(repr(chosen).encode()).hexdigest()
    key = json.dumps([made_on, vectors, conversations, seed, __version__])
    return Steps.of(key, user_cache_path("engrain") / "trajectories")
