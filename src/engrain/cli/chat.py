"""``engrain chat``: a conversation whose steering is changed while it goes on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engrain.cli.options import model_option, sampling_options, steering_options
from engrain.cli.output import say
from engrain.plugins.manager import Plugins

if TYPE_CHECKING:
    from engrain.core.composition import Active
    from engrain.core.contrast import Message
    from engrain.core.generate import Sampling
    from engrain.core.model import SteerableModel

_HELP = """\
/steer REF STRENGTH   put a vector on, or change its strength
/off [REF]            take one off, or all
/compare              show the base model's next replies beside the steered ones, or stop it
/active               what is on
/reset                start the conversation anew
/quit                 leave"""


@click.command("chat")
@steering_options
@click.option("--compare", is_flag=True, help="Show the base model's replies beside the steered ones.")
@sampling_options
@model_option
@click.pass_obj
def chat_command(
    plugins: Plugins,
    profile: Path | None,
    overrides: tuple[str, ...],
    steer: str | None,
    compare: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    model_name: str,
) -> None:
    """Talk to a model; inside the chat /steer listening 0.8, /off and /compare change what is on.

    Example: engrain chat --steer listening=1.2
    """
    from engrain.core.generate import Sampling
    from engrain.steering import open_steering

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    model, active = open_steering(plugins, model_name, profile, overrides, steer)
    say(f"{model.source}; /help lists what can be typed besides messages, /quit leaves.")
    Chat(model, active, sampling, compare).run()


class Chat:
    """A running conversation."""

    def __init__(
        self, model: "SteerableModel", active: dict[str, "Active"], sampling: "Sampling", compare: bool
    ) -> None:
        self.model = model
        self.active = active
        self.sampling = sampling
        self.compare = compare
        self.messages: list[Message] = []

    def run(self) -> None:
        """Read lines until /quit or the end of the input."""
        from engrain.core.errors import EngrainError

        while True:
            if sys.stdin.isatty():
                click.echo("> ", nl=False, err=True)
            line = sys.stdin.readline()
            if not line or line.strip() == "/quit":
                return
            try:
                if line.startswith("/"):
                    self.obey(line.split())
                elif line.strip():
                    self.reply(line.strip())
            except EngrainError as error:
                # A mistyped name must not end the conversation.
                say(str(error))
            except KeyboardInterrupt:
                say("\n(stopped)")

    def obey(self, words: list[str]) -> None:
        """Do what a line that starts with / says."""
        from engrain.core.errors import InputError

        verb, arguments = words[0], words[1:]
        if verb == "/steer" and len(arguments) in (1, 2):
            from engrain.registry.store import Store
            from engrain.registry.vectors import activate_steering

            text = "=".join(arguments)
            self.active |= activate_steering(self.model, Store(), text)
        elif verb == "/off" and len(arguments) <= 1:
            for name in arguments or list(self.active):
                if self.active.pop(name, None) is None:
                    raise InputError(f"'{name}' is not on; on is: {', '.join(self.active) or 'nothing'}.")
        elif verb == "/compare":
            self.compare = not self.compare
        elif verb == "/reset":
            self.messages.clear()
        elif verb == "/help":
            say(_HELP)
            return
        elif verb != "/active":
            raise InputError(f"'{' '.join(words)}' is nothing that can be typed here:\n{_HELP}")
        on = ", ".join(
            f"{name} {one.strength:g} at {','.join(map(str, one.layers))}" for name, one in self.active.items()
        )
        say(f"on: {on or 'nothing'}{'; compared with the base' if self.compare else ''}")

    def reply(self, prompt: str) -> None:
        """Answer a message; the steered reply is what the conversation goes on with."""
        from engrain.core.contrast import Message
        from engrain.core.generate import generate

        conversation = [*self.messages, Message("user", prompt)]
        if self.compare and self.active:
            from engrain.cli.sides import print_sides

            with self.model.steer(rows=[[], list(self.active.values())]):
                base, reply = generate(self.model, [conversation, conversation], self.sampling)
            print_sides(prompt, base, reply, ", ".join(self.active))
        else:
            with self.model.steer(*self.active.values()):
                reply = generate(
                    self.model, [conversation], self.sampling, on_text=lambda text: click.echo(text, nl=False)
                )[0]
            click.echo()
        # Only now: an interrupted reply leaves the conversation as it was.
        self.messages = [*conversation, Message("assistant", reply)]
