"""A conversation with a server that `engrain serve` started: the same words, what is on goes with each request."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engrain.cli.dialog import talk
from engrain.cli.output import printable, say
from engrain.core.errors import InputError, ModelError

if TYPE_CHECKING:
    from openai import OpenAI

    from engrain.core.generate import Sampling

Answer = TypeVar("Answer")

_HELP = """\
/steer REF [STRENGTH]  have the next replies steered by a vector, or change its strength
/off [REF]             take one off, or all: then nothing steers, not even the server's profile
/default               be steered by the server's profile again
/compare               show unsteered replies beside the steered ones, or stop it
/active                what is on
/reset                 start the conversation anew
/quit                  leave"""


def open_client(server: str) -> "OpenAI":
    """Return a client of a server.

    Args:
        server: its address, as http://localhost:8000; ``OPENAI_API_KEY`` holds its key, if it has one.

    Raises:
        InputError: not an address, or the package ``openai`` is not installed.
    """
    try:
        from openai import OpenAI
    except ImportError as error:
        raise InputError("--server needs the package openai: pip install 'engrain[judge]'.") from error
    if not server.startswith(("http://", "https://")):
        raise InputError(f"--server '{server}' is no address; write it as http://localhost:8000.")
    base = server.rstrip("/").removesuffix("/v1")
    return OpenAI(base_url=f"{base}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))


class RemoteChat:
    """A running conversation.

    Attributes:
        on: the vectors that steer, with their strengths or None for their own; None for the server's profile.
    """

    def __init__(self, client: "OpenAI", steer: str | None, sampling: "Sampling", compare: bool) -> None:
        from engrain.registry.vectors import parse_steering

        self._client = client
        self._sampling = sampling
        self._model = self._ask(lambda: client.models.list().data[0].id)
        self._messages: list[dict[str, str]] = []
        self.compare = compare
        self.on = None if steer is None else dict(parse_steering(steer))
        say(f"{self._model}; /help lists what can be typed besides messages, /quit leaves.")

    def run(self) -> None:
        """Read lines until /quit or the end of the input."""
        talk(self.obey, self.reply)

    @property
    def spec(self) -> str | None:
        """What goes with a request; None for the server's profile."""
        if self.on is None:
            return None
        items = [where if strength is None else f"{where}={strength:g}" for where, strength in self.on.items()]
        return ",".join(items) or "none"

    def obey(self, words: list[str]) -> None:
        """Do what a line that starts with / says."""
        from engrain.registry.vectors import parse_steering

        verb, arguments = words[0], words[1:]
        if verb == "/steer" and len(arguments) in (1, 2):
            self.on = (self.on or {}) | dict(parse_steering("=".join(arguments)))
        elif verb == "/off" and len(arguments) <= 1:
            missing = [name for name in arguments if name not in (self.on or {})]
            if missing:
                raise InputError(f"'{missing[0]}' is not on; on is: {self.spec or 'the profile of the server'}.")
            self.on = {name: dose for name, dose in (self.on or {}).items() if arguments and name not in arguments}
        elif verb == "/default" and not arguments:
            self.on = None
        elif verb == "/compare":
            self.compare = not self.compare
        elif verb == "/reset":
            self._messages.clear()
        elif verb == "/help":
            say(_HELP)
            return
        elif verb != "/active":
            raise InputError(f"'{' '.join(words)}' is nothing that can be typed here:\n{_HELP}")
        say(f"on: {self.spec or 'the profile of the server'}{'; compared with the base' if self.compare else ''}")

    def reply(self, prompt: str) -> None:
        """Answer a message; the steered reply is what the conversation goes on with."""
        messages = [*self._messages, {"role": "user", "content": prompt}]
        if self.compare and self.spec != "none":
            from engrain.cli.sides import print_sides

            base = self._generate(messages, "none", None)
            text = self._generate(messages, self.spec, None)
            print_sides(prompt, base, text, self.spec or "profile")
        else:
            text = self._generate(messages, self.spec, lambda piece: click.echo(piece, nl=False))
            click.echo()
        self._messages = [*messages, {"role": "assistant", "content": text}]

    def _generate(self, messages: list[dict[str, str]], spec: str | None, on_text: Callable[[str], None] | None) -> str:
        body: dict[str, Any] = {} if spec is None else {"vllm_xargs": {"engrain": spec}}

        def stream() -> str:
            text = ""
            chunks: Any = self._client.chat.completions.create(
                model=self._model,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=self._sampling.max_new_tokens,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                seed=self._sampling.seed,
                extra_body=body,
                stream=True,
            )
            for chunk in chunks:
                piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
                text += piece
                if on_text is not None:
                    on_text(piece)
            return text

        return self._ask(stream)

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """Call the server; what it refuses becomes one line."""
        import openai

        try:
            return call()
        except openai.APIConnectionError as error:
            where = f"'{self._client.base_url}' ({error})"
            raise ModelError(f"No answer from {where}; is the server up? engrain serve starts one.") from error
        except openai.APIError as error:
            body = error.body if isinstance(error.body, dict) else {}
            raise InputError(f"The server says: {printable(str(body.get('message', error.message)))}") from error
