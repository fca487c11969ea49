"""The one chat renderer: conversations to tokens, the same for extraction, scoring and generation."""

import hashlib
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from engrain.core.contrast import Message
from engrain.core.errors import DataError

# For a tokenizer without a chat template of its own. A line break ends the header, so that a reply that is tokenized
# apart starts as it would at the start of a line.
PLAIN_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant\n{% endif %}"
)


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the assistant's reply starts.

    The tokenizer's own chat template is used, its default system prompt left in; ``PLAIN_TEMPLATE`` if it has none.

    Raises:
        DataError: the template refuses the conversation (some know no system role, some want turns to alternate).
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, chat_template=chat_template(tokenizer), add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        roles = " ".join(message.role for message in messages)
        raise DataError(
            "conversation", None, f"the model's chat template refuses the turns '{roles}': {error}"
        ) from error
    assert isinstance(text, str)
    # A template of the tokenizer's own writes the special tokens itself; adding them again would double the first.
    own = tokenizer.chat_template is not None
    return list(tokenizer(text, add_special_tokens=not own)["input_ids"])


def encode_reply(tokenizer: PreTrainedTokenizerBase, reply: str) -> list[int]:
    """Return the tokens of a reply alone: nothing added in front, no end token.

    Raises:
        DataError: the reply has no token.
    """
    tokens = list(tokenizer(reply, add_special_tokens=False)["input_ids"])
    if not tokens:
        raise DataError("reply", None, f"{reply!r} has no token in this model's vocabulary.")
    return tokens


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template that conversations are rendered with."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # named templates: "default" is the one for chats
        template = template.get("default")
    return template if isinstance(template, str) else PLAIN_TEMPLATE


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the chat template."""
    return f"sha256:{hashlib.sha256(chat_template(tokenizer).encode()).hexdigest()}"
