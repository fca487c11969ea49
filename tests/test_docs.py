"""What the documents say is what the code has."""

import inspect
import json
import re
from pathlib import Path

import click
import pytest

from engrain.core.apollo import Apollo
from engrain.core.contrast import parse_pair
from engrain.core.profile import Profile
from engrain.plugins import spec
from engrain.plugins.manager import build_manager

ROOT = Path(__file__).parents[1]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_every_hook_is_documented_with_its_arguments() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for name, hook in vars(spec).items():
        if hasattr(hook, f"{spec.PROJECT}_spec"):
            arguments = ", ".join(inspect.signature(hook).parameters)
            assert f"\n## {name}({arguments})\n" in text


def test_every_command_that_a_document_shows_exists_with_its_options() -> None:
    commands = {name: load() for name, (load, _) in build_manager().commands().items()}
    shown = 0
    for path in (ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/*.md"), *ROOT.glob("behaviors/*/README.md")):
        for verb, rest in re.findall(r"engrain ([a-z]+)((?: [^\n`#|&]*)?)", path.read_text(encoding="utf-8")):
            if verb not in commands:
                continue
            shown += 1
            command = commands[verb]
            if isinstance(command, click.Group) and (word := rest.split()[:1]):
                command = command.get_command(click.Context(command), word[0]) or command
            known = {name for parameter in command.params for name in parameter.opts}
            for option in re.findall(r"(?<= )--?[a-z][a-z-]*", rest):
                assert option in known, f"{path.name}: engrain {verb} {option}"
    assert shown >= 12
    assert all(isinstance(command, click.Command) for command in commands.values())


def test_the_optimizer_is_used_as_its_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(ROOT / "docs" / "apollo.md", "python")
    exec(compile(example, "docs/apollo.md", "exec"), {})
    assert int(capsys.readouterr().out) > 0


def test_the_settings_on_its_page_are_the_optimizers() -> None:
    text = (ROOT / "docs" / "apollo.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`[^|]*`) \| ", text.split("## Settings")[1].split("**")[0], re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(inspect.signature(Apollo).parameters) - {"params"}


def test_the_profiles_that_are_shown_are_profiles() -> None:
    shown = [
        *blocks(ROOT / "docs" / "formats.md", "yaml"),
        *(p.read_text() for p in ROOT.glob("examples/profiles/*.yaml")),
    ]
    assert len(shown) >= 2
    for text in shown:
        assert text.startswith("# engrain ")
        assert Profile.parse(text).behaviors


def test_the_shipped_data_are_written_one_object_a_line() -> None:
    for path in ROOT.glob("behaviors/*/pairs.jsonl"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            parse_pair(json.loads(line), path, number)
