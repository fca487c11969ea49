"""What the documents say is what the code has."""

import inspect
import json
import re
import shlex
from contextlib import suppress
from pathlib import Path

import click
import pytest

import engrain
from engrain.cli.main import cli
from engrain.core.apollo import Apollo
from engrain.core.contrast import parse_pair
from engrain.core.errors import EngrainError
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


def lines(text: str) -> list[list[str]]:
    """Return the words of every ``engrain ...`` that is shown: lines of fenced blocks, and code inside of sentences."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = []
    for line in ("\n".join(fenced) + "\n" + "\n".join(inline)).splitlines():
        for part in line.split("&&"):
            words = shlex.split(part.strip().removeprefix("$ "), comments=True) if "engrain " in part else []
            if words[:1] == ["engrain"] and not words[1].startswith(("...", "-")):
                found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """Parse a command line as the command line does, down to the last group, without running it.

    Raises:
        click.UsageError: no such command or option, a value of the wrong type, or a word too many.
    """
    command: click.Command = cli
    context = click.Context(cli, info_name="engrain", obj=build_manager())
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    if words or not isinstance(command, click.Group):
        # A sentence that names a command need not name what it works on.
        with suppress(click.MissingParameter):
            command.make_context(context.info_name, list(words), parent=context.parent)


PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("behaviors/*/README.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    ROOT / "plugins" / "template" / "README.md.template",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_that_is_shown_parses(page: Path) -> None:
    for words in lines(page.read_text(encoding="utf-8")):
        try:
            parse(words)
        except (click.UsageError, EngrainError) as error:
            pytest.fail(f"engrain {shlex.join(words)}: {error}")


@pytest.mark.parametrize(
    "line", ["exract listening", "extract a b", "registry alais x 1", "registry alias x one", "run a --bakend bias"]
)
def test_a_command_line_that_is_wrong_does_not_parse(line: str) -> None:
    (words,) = lines(f"```sh\n$ engrain {line}  # a comment\n```\n")
    with pytest.raises((click.UsageError, EngrainError)):
        parse(words)


def test_the_pages_show_every_command() -> None:
    shown = {words[0] for page in PAGES for words in lines(page.read_text(encoding="utf-8"))}
    assert shown >= set(build_manager().commands())


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
        *(text for page in ROOT.glob("docs/*.md") for text in blocks(page, "yaml")),
        *(p.read_text() for p in ROOT.glob("examples/profiles/*.yaml")),
    ]
    assert len(shown) >= 4
    for text in shown:
        assert text.startswith("# engrain ")
        assert Profile.parse(text).behaviors


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: engrain\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == [name for name in engrain.__all__ if name != "__version__"]


def test_the_counts_of_the_data_in_each_readme_are_the_datas() -> None:
    for page in ROOT.glob("behaviors/*/README.md"):
        behavior = build_manager().behavior(page.parent.name)
        pairs = behavior.pairs()
        counted = (
            f"{len(pairs)} pairs over {len({pair.scenario for pair in pairs})} scenarios in "
            f"{len({pair.domain for pair in pairs})} domains, written one by one; "
            f"{sum(pair.boundary for pair in pairs)} boundary pairs; "
            f"{sum(len(pair.messages) > 1 for pair in pairs)} with earlier turns; {len(behavior.scenarios())} scenarios"
        )
        assert counted in " ".join(page.read_text(encoding="utf-8").split()), counted


def test_the_shipped_data_are_written_one_object_a_line() -> None:
    for path in ROOT.glob("behaviors/*/pairs.jsonl"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            parse_pair(json.loads(line), path, number)
