"""What a model knows: short questions with exact answers, to see whether an edit costs any of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engrain.core.capture import PackRunner
from engrain.core.errors import DataError
from engrain.core.files import read_json_lines
from engrain.core.model import SteerableModel
from engrain.core.scoring import reply_means

# 140 questions of ten subjects, easy enough for small models to know about half; written for this.
SHIPPED = Path(__file__).parent / "data" / "capability.jsonl"


@dataclass(frozen=True)
class Question:
    """A question with one right answer.

    Attributes:
        id: names it.
        subject: what it is about.
        question: the user's message.
        choices: possible replies.
        answer: which of them is right, counted from 0.
    """

    id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path = SHIPPED) -> list[Question]:
    """Read JSON lines of ``{"id", "subject", "question", "choices": [...], "answer": number}``.

    Raises:
        DataError: a bad line, or no question.
    """
    found: list[Question] = []
    for number, line in read_json_lines(path):
        words = [line.get(key) for key in ("id", "subject", "question")]
        choices, answer = line.get("choices"), line.get("answer")
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise DataError(path, number, "a question needs 'id', 'subject' and 'question', all text.")
        if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise DataError(path, number, "'choices' is not a list of texts.")
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise DataError(path, number, "'choices' needs two different texts or more, none of them twice.")
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise DataError(path, number, f"'answer' is not the place of one of the {len(choices)} choices, from 0.")
        found.append(Question(line["id"], line["subject"], line["question"], tuple(choices), answer))
    if not found:
        raise DataError(path, None, "holds no question.")
    return found


def answered(model: SteerableModel, questions: Sequence[Question]) -> Tensor:
    """Return which questions the model answers right: the right choice has the highest log-probability per token.

    Args:
        model: the model, with whatever edit is on it.
        questions: the questions.

    Returns:
        Booleans [questions].
    """
    sequences = [model.encode(one.question, choice) for one in questions for choice in one.choices]
    scores = reply_means(PackRunner(model, sequences), sequences)
    of_each = scores.split([len(one.choices) for one in questions])
    return torch.tensor([int(own.argmax()) == one.answer for own, one in zip(of_each, questions, strict=True)])
