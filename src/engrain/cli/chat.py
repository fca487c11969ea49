"""``engrain chat``: a conversation in which what is on the model is changed while it goes on."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from engrain.cli.dialog import talk
from engrain.cli.options import model_option, sampling_options, steering_options
from engrain.cli.output import say
from engrain.plugins.manager import Plugins

if TYPE_CHECKING:
    from engrain.core.contrast import Message
    from engrain.core.generate import Sampling
    from engrain.core.model import SteerableModel
    from engrain.steering import InUse

_HELP = """\
/steer REF [STRENGTH]  put a vector on, or change its strength
/apply REF [SCALE]     put a task vector on the weights, or change its scale
/off [REF]             take one off, or all
/compare               show the base model's next replies beside the edited ones, or stop it
/active                what is on
/reset                 start the conversation anew
/quit                  leave"""


@click.command("chat")
@steering_options
@click.option("--server", metavar="URL", help="Talk to what `engrain serve` started; the profile is that server's.")
@click.option("--compare", is_flag=True, help="Show the base model's replies beside the edited ones.")
@sampling_options
@model_option
@click.pass_obj
def chat_command(
    plugins: Plugins,
    profile: Path | None,
    overrides: tuple[str, ...],
    steer: str | None,
    task_vectors: str | None,
    server: str | None,
    compare: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    model_name: str,
) -> None:
    """Talk to a model; inside the chat /steer listening 0.8, /apply, /off and /compare change what is on.

    Example: engrain chat --steer listening=1.2
    """
    from engrain.core.generate import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    if server is not None:
        from engrain.cli.remote_chat import RemoteChat, open_client
        from engrain.core.errors import InputError

        if profile is not None or task_vectors is not None:
            raise InputError("--server has a profile and weights of its own; give only --steer besides.")
        RemoteChat(open_client(server), steer, sampling, compare).run()
        return

    from engrain.steering import open_steering

    model, in_use = open_steering(plugins, model_name, profile, overrides, steer, task_vectors)
    say(f"{model.source}; /help lists what can be typed besides messages, /quit leaves.")
    Chat(model, in_use, sampling, compare).run()


class Chat:
    """A running conversation."""

    def __init__(self, model: "SteerableModel", in_use: "InUse", sampling: "Sampling", compare: bool) -> None:
        self.model = model
        self.in_use = in_use
        self.sampling = sampling
        self.compare = compare
        self.messages: list[Message] = []

    def run(self) -> None:
        """Read lines until /quit or the end of the input; the model is the base again after it."""
        # Here, and again when they change: not for every reply.
        with self.model.edited(self.in_use.edits):
            talk(self.obey, self.reply)

    def obey(self, words: list[str]) -> None:
        """Do what a line that starts with / says."""
        from engrain.core.errors import InputError
        from engrain.registry.store import Store

        verb, arguments = words[0], words[1:]
        if verb == "/steer" and len(arguments) in (1, 2):
            from engrain.registry.vectors import activate_steering

            self.in_use.vectors |= activate_steering(self.model, Store(), "=".join(arguments))
        elif verb == "/apply" and len(arguments) in (1, 2):
            from engrain.registry.task_vectors import read_edits

            edits = self.in_use.edits | read_edits(self.model, Store(), "=".join(arguments))
            self.model.edits.set(edits)
            self.in_use.edits = edits
        elif verb == "/off" and len(arguments) <= 1:
            for name in arguments or list(self.in_use.vectors | self.in_use.edits):
                self.in_use.off(name)
            self.model.edits.set(self.in_use.edits)
        elif verb == "/compare":
            self.compare = not self.compare
        elif verb == "/reset":
            self.messages.clear()
        elif verb == "/help":
            say(_HELP)
            return
        elif verb != "/active":
            raise InputError(f"'{' '.join(words)}' is nothing that can be typed here:\n{_HELP}")
        on = [
            f"{name} {one.strength:g} at {','.join(map(str, one.layers))}" for name, one in self.in_use.vectors.items()
        ]
        on += [f"{name} {one.scale:g} on the weights" for name, one in self.in_use.edits.items()]
        say(f"on: {', '.join(on) or 'nothing'}{'; compared with the base' if self.compare else ''}")

    def reply(self, prompt: str) -> None:
        """Answer a message; the edited reply is what the conversation goes on with."""
        from engrain.core.contrast import Message
        from engrain.core.generate import generate

        conversation = [*self.messages, Message("user", prompt)]
        if self.compare and self.in_use:
            from engrain.cli.sides import print_sides

            base, reply = self.in_use.side_by_side(self.model, conversation, self.sampling)
            print_sides(prompt, base, reply, str(self.in_use))
        else:
            with self.in_use.on(self.model):
                reply = generate(
                    self.model, [conversation], self.sampling, on_text=lambda text: click.echo(text, nl=False)
                )[0]
            click.echo()
        # Only now: an interrupted reply leaves the conversation as it was.
        self.messages = [*conversation, Message("assistant", reply)]
