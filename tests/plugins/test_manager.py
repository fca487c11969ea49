"""Discovery: a broken plugin is named with its distribution and takes none of the others down."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engrain.plugins.manager import build_manager

GOOD = """
from engrain.plugins import Behavior, hookimpl

@hookimpl
def register_behaviors(register):
    register(Behavior("{name}", "d", list, list, "do", "do not"))
"""


def add(site: Path, name: str, module: str) -> None:
    """Lay an installed distribution into a folder, as an installer would."""
    (site / f"{name}_plugin.py").write_text(module)
    info = site / f"dist_{name}-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(f"[engrain]\n{name} = {name}_plugin\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    add(folder, "good", GOOD.format(name="good"))
    return folder


def engrain(site: Path, *command: str, plugins: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)} | ({} if plugins is None else {"ENGRAIN_PLUGINS": plugins})
    command = (sys.executable, "-m", "engrain", *command)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("def (", "SyntaxError"),
        (GOOD.format(name="Bad Name"), "cannot name a behavior"),
        (
            GOOD.format(name="twice") + GOOD.format(name="twice").splitlines()[-1].replace("    ", "    "),
            "registered twice",
        ),
        (
            "from engrain.plugins import hookimpl\n@hookimpl\ndef register_behaviors(register, more):\n    pass\n",
            "more",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_work(site: Path, module: str, said: str) -> None:
    add(site, "bad", module)
    done = engrain(site, "behaviors")
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout
    assert "listening" in done.stdout
    assert "Plugin 'bad' of dist-bad 2.5" in done.stderr
    assert said in done.stderr


def test_two_plugins_with_one_name_are_both_named(site: Path) -> None:
    add(site, "other", GOOD.format(name="good"))
    done = engrain(site, "behaviors")
    assert done.returncode == 2
    assert "registered by dist-good 2.5 and by dist-other 2.5" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [(None, {"good", "second"}), ("", set()), ("good", {"good"}), ("second, good", {"good", "second"}), ("x", set())],
)
def test_the_environment_says_which_plugins_are_loaded(site: Path, plugins: str | None, expected: set[str]) -> None:
    add(site, "second", GOOD.format(name="second"))
    done = engrain(site, "behaviors", plugins=plugins)
    assert {name for name in ("good", "second") if f"{name} " in done.stdout} == expected
    assert "listening" in done.stdout


def test_an_unknown_behavior_names_the_nearest_and_what_is_broken(site: Path) -> None:
    add(site, "bad", "raise RuntimeError('no luck')")
    done = engrain(site, "behaviors", "show", "listenin")
    assert done.returncode == 2
    assert "Did you mean 'listening'" in done.stderr
    assert "Plugin 'bad' of dist-bad 2.5" in done.stderr


def test_a_plugins_command_is_run_and_a_broken_one_says_so(site: Path) -> None:
    module = (
        "import click\nfrom engrain.plugins import hookimpl\n"
        "@click.command()\ndef hello():\n    click.echo('hello there')\n"
        "def fail():\n    raise ImportError('half installed')\n"
        "@hookimpl\ndef register_commands(register):\n"
        "    register('hello', lambda: hello)\n    register('fail', fail)\n"
    )
    add(site, "verbs", module)
    assert engrain(site, "hello").stdout == "hello there\n"
    assert "Broken: half installed" in engrain(site, "--help").stdout
    done = engrain(site, "fail")
    assert done.returncode == 2
    assert "The command 'fail' of dist-verbs 2.5 cannot be loaded" in done.stderr


BY_KEYWORD = """
from engrain.plugins import Behavior, hookimpl

@hookimpl
def register_behaviors(register):
    register(behavior=Behavior("kept", "d", list, list, "do", "do not"))

@hookimpl
def register_estimators(register):
    register(name="mean", estimator=len)

@hookimpl
def register_scorers(register):
    register(name="short", scorer=len)

@hookimpl
def register_judges(register):
    register("strict", judge=len)

@hookimpl
def register_compilers(register):
    register(compile=len, name="own")

@hookimpl
def register_model_sources(register):
    register(name="shelf", find=len, rank=5)

@hookimpl
def register_exporters(register):
    register("text", kinds=["vector"], write=len)

@hookimpl
def register_importers(register):
    register(suffix=".text", read=len)

@hookimpl
def register_remotes(register):
    register(scheme="tape", open_remote=len)

@hookimpl
def register_commands(register):
    register(name="hello", load=len)
"""


def test_register_takes_keywords_under_the_names_that_the_specification_gives(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(site, "keyword", BY_KEYWORD)
    monkeypatch.syspath_prepend(str(site))
    plugins = build_manager()
    plugins.check()
    assert plugins.broken == []
    assert plugins.behavior("kept").name == "kept"
    found: list[Any] = [plugins.estimator("mean"), plugins.scorer("short"), plugins.judge("strict")]
    found += [plugins.compiler("own"), plugins.importer(".text"), plugins.model_sources()[0]]
    write, kinds = plugins.exporter("text")
    assert all(one is len for one in [*found, write])
    assert (plugins.spec_of("own"), kinds) == ("selective", ("vector",))
    opened: Any = plugins.remote("tape://abc")
    assert opened == len("tape://abc")
    assert "hello" in plugins.commands()


def test_register_with_a_name_that_is_not_the_specifications_breaks_the_plugin(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(site, "misnamed", BY_KEYWORD.replace("scorer=len", "score=len"))
    monkeypatch.syspath_prepend(str(site))
    plugins = build_manager()
    plugins.check()
    assert [str(one) for one in plugins.broken] == [
        "Plugin 'misnamed' of dist-misnamed 2.5 cannot be loaded: register_scorers: TypeError: missing a required "
        "argument: 'scorer'"
    ]
