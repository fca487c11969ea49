"""One renderer: no doubled special tokens, a plain template where there is none, refusals in one line."""

import pytest
from transformers import PreTrainedTokenizerFast

from engrain.core.chat import PLAIN_TEMPLATE, chat_template, encode_reply, render_prompt, template_digest
from engrain.core.contrast import Message
from engrain.core.errors import DataError
from tiny import byte_tokenizer

HI = [Message("user", "hi")]


def with_template(template: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = template
    return made


def test_the_tokenizers_own_template_is_used_with_its_default_system_prompt() -> None:
    tokens = render_prompt(byte_tokenizer(), HI)
    assert byte_tokenizer().decode(tokens) == "<s>system: You are Tiny.\nuser: hi\nassistant: "
    assert tokens.count(256) == 1


def test_a_system_message_takes_the_defaults_place() -> None:
    text = byte_tokenizer().decode(render_prompt(byte_tokenizer(), [Message("system", "Be brief."), *HI]))
    assert text == "<s>system: Be brief.\nuser: hi\nassistant: "


def test_without_a_template_the_documented_plain_one_is_used() -> None:
    plain = byte_tokenizer(template=False)
    assert (
        plain.decode(render_prompt(plain, [Message("system", "S"), *HI]))
        == "### System\nS\n\n### User\nhi\n\n### Assistant\n"
    )
    assert chat_template(plain) == PLAIN_TEMPLATE


def test_a_template_that_refuses_a_role_is_one_line() -> None:
    strict = with_template("{% for m in messages %}{{ raise_exception('System role not supported') }}{% endfor %}")
    with pytest.raises(DataError, match="'system user': System role not supported"):
        render_prompt(strict, [Message("system", "S"), *HI])


def test_a_reply_gets_no_special_tokens_and_must_have_one_of_its_own() -> None:
    assert encode_reply(byte_tokenizer(), "ab") == byte_tokenizer()("ab")["input_ids"]
    with pytest.raises(DataError, match="no token"):
        encode_reply(byte_tokenizer(), "")


def test_the_digest_is_that_of_the_template() -> None:
    assert template_digest(with_template("a")) != template_digest(with_template("b"))
    assert template_digest(with_template("a")) == template_digest(with_template("a"))
