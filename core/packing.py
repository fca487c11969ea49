"""Token sequences packed for one forward pass, everything that they share computed once.

Replies to the same prompt share its tokens, conversations share the system prompt, replies may open alike. A pack is a
token tree: each distinct prefix stands once, a token sees its ancestors alone, and its position is its depth. A causal
model computes the same hidden states as for the sequences one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A shorter branch than this is computed with the next one.
BRANCH_TOKENS = 64


@dataclass(frozen=True)
class Encoded:
    """A conversation and a reply to it, as tokens."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """Several sequences, laid out for one forward pass.

    Attributes:
        members: indices of the sequences, into the list that was packed.
        tokens: [batch, seq].
        index: place of each token in its own sequence, -1 for padding, [batch, seq].
        generated: whether the token belongs to a reply, [batch, seq].
        visible: which tokens each token sees, booleans [seq, seq] for a tree; None where each row is one sequence.
        paths: for each member, where its tokens stand in the flattened [batch * seq], the shared start left out.
        prompt_lengths: for each member, how many tokens of its path are prompt.
        cuts: where the branches of a tree begin, and where the last one ends; empty where each row is one sequence.
    """

    members: tuple[int, ...]
    tokens: Tensor
    index: Tensor
    generated: Tensor
    visible: Tensor | None
    paths: tuple[Tensor, ...]
    prompt_lengths: tuple[int, ...]
    cuts: tuple[int, ...] = ()

    def reply(self, place: int) -> Tensor:
        """Return where the reply tokens of the member at ``place`` stand, [reply]."""
        return self.paths[place][self.prompt_lengths[place] :]


def shared_start(sequences: Sequence[Encoded]) -> int:
    """Return how many tokens every prompt starts with, leaving each at least one of its own."""
    first = min((sequence.prompt for sequence in sequences), default=())
    last = max((sequence.prompt for sequence in sequences), default=())
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return max(0, min(length, min((len(sequence.prompt) for sequence in sequences), default=1) - 1))


def pack_trees(
    sequences: Sequence[Encoded], start: int, tokens: int, group: int = 1, branch: int = BRANCH_TOKENS
) -> Iterator[Pack]:
    """Pack sequences into token trees.

    Args:
        sequences: what to pack; every ``group`` in a row stay in one pack.
        start: how many tokens at the front are left out, the same for all.
        tokens: how many tokens a pack may hold; a group that alone holds more is a pack of its own.
        group: how many sequences belong together.
        branch: how many tokens a branch has at least, the last one of a pack aside.
    """
    # Sorted by their tokens, conversations that start alike come to lie in one pack.
    order = sorted(range(0, len(sequences), group), key=lambda first: sequences[first].prompt)
    tree = _Tree(start)
    for first in order:
        members = range(first, first + group)
        before = tree.mark()
        tree.cut(branch)
        for member in members:
            tree.add(member, sequences[member])
        if len(tree) > tokens and before.members:
            tree.undo(before)
            yield tree.pack()
            tree = _Tree(start)
            for member in members:
                tree.add(member, sequences[member])
    if tree.members:
        yield tree.pack()


@dataclass(frozen=True)
class _Mark:
    nodes: int
    members: int


class _Tree:
    """A token tree that grows by sequences and can forget the latest."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.parent: list[int] = []
        self.generated: list[bool] = []
        self.members: list[int] = []
        self.paths: list[list[int]] = []
        self.prompt_lengths: list[int] = []
        self.cuts = [0]
        # Told apart by being of a reply: positional steering treats the same token differently there.
        self.children: dict[tuple[int, int, bool], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def mark(self) -> _Mark:
        return _Mark(len(self.tokens), len(self.members))

    def undo(self, mark: _Mark) -> None:
        for node in range(mark.nodes, len(self.tokens)):
            del self.children[self.parent[node], self.tokens[node], self.generated[node]]
        for per_node in (self.tokens, self.depth, self.parent, self.generated):
            del per_node[mark.nodes :]
        for per_member in (self.members, self.paths, self.prompt_lengths):
            del per_member[mark.members :]

    def cut(self, least: int) -> None:
        """Let a branch end here, if it is long enough."""
        if len(self.tokens) - self.cuts[-1] >= least:
            self.cuts.append(len(self.tokens))

    def add(self, member: int, sequence: Encoded) -> None:
        node, path = -1, []
        whole = sequence.prompt + sequence.reply
        for place in range(self.start, len(whole)):
            generated = place >= len(sequence.prompt)
            key = (node, whole[place], generated)
            if key not in self.children:
                self.children[key] = len(self.tokens)
                self.tokens.append(whole[place])
                self.depth.append(place)
                self.parent.append(node)
                self.generated.append(generated)
            node = self.children[key]
            path.append(node)
        self.members.append(member)
        self.paths.append(path)
        self.prompt_lengths.append(len(sequence.prompt) - self.start)

    def pack(self) -> Pack:
        visible = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                visible[node] = visible[parent]
            visible[node, node] = True
        return Pack(
            tuple(self.members),
            torch.tensor([self.tokens]),
            torch.tensor([self.depth]),
            torch.tensor([self.generated]),
            torch.from_numpy(visible),
            tuple(torch.tensor(path) for path in self.paths),
            tuple(self.prompt_lengths),
            (*(cut for cut in self.cuts if cut < len(self.tokens)), len(self.tokens)),
        )


def pack_rows(sequences: Sequence[Encoded], tokens: int, group: int = 1) -> Iterator[Pack]:
    """Pack sequences as rows, padded on the right: for models that cannot be told what each token sees.

    Args:
        sequences: what to pack; every ``group`` in a row stay in one pack.
        tokens: how many tokens a pack may hold, padding counted; a group that alone holds more is a pack of its own.
        group: how many sequences belong together.
    """

    def longest(first: int) -> int:
        return max(len(one.prompt) + len(one.reply) for one in sequences[first : first + group])

    # Sorted by length, rows of one pack need little padding.
    members: list[int] = []
    for first in sorted(range(0, len(sequences), group), key=longest):
        if members and longest(first) * (len(members) + group) > tokens:
            yield _pack_rows(sequences, members)
            members = []
        members += range(first, first + group)
    if members:
        yield _pack_rows(sequences, members)


def _pack_rows(sequences: Sequence[Encoded], members: Sequence[int]) -> Pack:
    wholes = [sequences[member].prompt + sequences[member].reply for member in members]
    width = max(map(len, wholes))
    tokens = torch.zeros(len(members), width, dtype=torch.long)
    index = torch.full_like(tokens, -1)
    generated = torch.zeros_like(tokens, dtype=torch.bool)
    paths = []
    for row, (member, whole) in enumerate(zip(members, wholes, strict=True)):
        tokens[row, : len(whole)] = torch.tensor(whole)
        index[row, : len(whole)] = torch.arange(len(whole))
        generated[row, len(sequences[member].prompt) : len(whole)] = True
        paths.append(torch.arange(row * width, row * width + len(whole)))
    prompt_lengths = tuple(len(sequences[member].prompt) for member in members)
    return Pack(tuple(members), tokens, index, generated, None, tuple(paths), prompt_lengths)
