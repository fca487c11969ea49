"""``engrain registry``: the night it is for, and every verb with --json and with its example."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from engrain.cli.main import main
from engrain.cli.registry import MODULES, registry_command
from engrain.registry.store import Parent, Store

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def registry(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call ``engrain registry`` in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["engrain", "registry", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, said.out, said.err

    return call


@pytest.fixture
def store(registry: Call) -> Store:
    """Pairs, three vectors from them with verdicts: the first two passed."""
    made = Store()
    pairs = made.publish("dataset", "brevity", config={}, files={"pairs.jsonl": b"{}\n"})
    for number, passed in ((1, True), (2, True), (3, False)):
        parents = [Parent("pairs", pairs.digest)]
        vector = made.publish("vector", "brevity", config={"n": number}, files={"x": b"x"}, parents=parents)
        config = {"passed": passed, "n": number}
        made.publish("verdict", "brevity", config=config, files={}, parents=[Parent("vector", vector.digest)])
    return made


def test_at_night_one_command_puts_the_previous_one_back_and_the_log_says_why(registry: Call, store: Store) -> None:
    assert registry("alias", "vector/brevity:stable", 1, "--reason", "first")[0] == 0
    assert registry("alias", "vector/brevity:stable", 2, "--expect", 1)[1] == (
        "vector/brevity:stable: @1 -> @2 (event 18)\n"
    )
    code, out, _ = registry("rollback", "vector/brevity:stable", "--reason", "replies got too long")
    assert (code, out) == (0, "vector/brevity:stable: @2 -> @1 (event 20)\n")
    code, out, _ = registry("log", "vector/brevity:stable")
    assert code == 0
    newest = click.unstyle(out).split("\n\nevent")[0]
    assert re.fullmatch(
        r"event 20  rollback\nWho:   .+\nWhen:  .+ UTC\nOn:    verdict/brevity@1, passed\n\n"
        r"    vector/brevity:stable  @2 -> @1\n    replies got too long",
        newest,
    )


def test_refusals_have_their_exit_codes_and_move_nothing(registry: Call, store: Store) -> None:
    code, out, err = registry("alias", "vector/brevity:stable", 3)
    assert (code, out, "verdict/brevity@3 on it did not pass" in err) == (1, "", True)
    assert registry("alias", "vector/brevity:stable", 3, "--force")[0] == 2
    code, _, err = registry("alias", "vector/brevity:stable", 2, "--expect", 1)
    assert (code, "not at 1 as expected" in err) == (2, True)
    assert registry("rollback", "vector/brevity:stable", "--steps", 1, "--to", 1)[0] == 2
    code, _, err = registry("rolback", "x")
    assert (code, "Did you mean 'rollback'" in err) == (2, True)
    assert Store().aliases("vector", "brevity") == {}
    assert registry("alias", "vector/brevity:stable", 3, "--force", "--reason", "demo")[0] == 0
    assert "--force" in registry("log", "vector/brevity:stable")[1]


def answer(registry: Call, *arguments: object) -> Any:
    code, out, err = registry(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_every_verb_prints_one_json_object(registry: Call, store: Store, tmp_path: Path) -> None:
    moved = answer(registry, "alias", "vector/brevity:stable", 1)
    assert (moved["from"], moved["to"], moved["evidence"]["verdict"]) == (None, 1, "verdict/brevity@1")
    answer(registry, "alias", "vector/brevity:stable", 2)
    assert answer(registry, "rollback", "vector/brevity:stable")["to"] == 1
    names = {f"{one['kind']}/{one['name']}": one for one in answer(registry, "list")["names"]}
    assert {name: one["versions"] for name, one in names.items()} == {
        "vector/brevity": 3,
        "verdict/brevity": 3,
        "dataset/brevity": 1,
    }
    assert names["vector/brevity"]["aliases"] == {"stable": 1}
    assert [one["kind"] for one in answer(registry, "list", "dataset")["names"]] == ["dataset"]
    shown = answer(registry, "show", "vector/brevity:stable")
    assert (shown["reference"], shown["aliases"]) == ("vector/brevity@1", ["vector/brevity:stable"])
    assert shown["parents"][0]["reference"] == "dataset/brevity@1"
    assert shown["verdict"]["passed"] is True
    assert [event["act"] for event in answer(registry, "log", "-n", 2)["events"]] == ["rollback", "alias"]
    assert answer(registry, "verify")["passed"] is True
    assert answer(registry, "gc") == {"dry_run": True, "files": [], "size": 0, "kept": []}
    drawn = answer(registry, "lineage", "vector/brevity@2")
    assert drawn["made_from"]["below"][0]["references"] == ["dataset/brevity@1"]
    assert drawn["used_by"]["below"][0]["references"] == ["verdict/brevity@2"]
    difference = answer(registry, "diff", "vector/brevity@1", "vector/brevity@2")["differences"]
    assert difference == [{"where": "config.n", "first": 1, "second": 2}]
    assert len(answer(registry, "push", tmp_path / "remote")["versions"]) == 7
    assert answer(registry, "pull", tmp_path / "remote")["objects"] == 0
    assert answer(registry, "delete", "vector/brevity@2", "--reason", "old")["deleted"] == "vector/brevity@2"


def test_verify_fails_until_it_is_repaired(registry: Call, store: Store, tmp_path: Path) -> None:
    registry("push", tmp_path / "remote")
    path = store.resolve("vector/brevity@1").path("x")
    path.chmod(0o644)
    path.write_bytes(b"y")
    code, out, err = registry("verify")
    assert code == 1
    assert "does not hold the bytes that its name says (needed by vector/brevity@1, " in out
    assert "verify --repair" in out
    assert "set aside: " in err
    assert registry("verify", "--remote", tmp_path / "remote")[0] == 2
    code, out, err = registry("verify", "--repair", "--remote", tmp_path / "remote")
    assert (code, "was fetched from the remote" in err, "nothing is wrong" in out) == (0, True, True)
    assert path.read_bytes() == b"x"


def test_pictures_for_people(registry: Call, store: Store) -> None:
    registry("alias", "vector/brevity:canary", 2)
    out = registry("list")[1]
    assert re.search(r"vector/brevity +3 +\d{4}-\d\d-\d\d \d\d:\d\d  canary @2\n", out)
    out = registry("show", "vector/brevity:canary")[1]
    for part in (
        "deployed as: vector/brevity:canary",
        "verdict: verdict/brevity@2 passed",
        "made from pairs: dataset/",
    ):
        assert part in out
    out = registry("lineage", "vector/brevity:canary")[1]
    assert "├── made from" in out
    assert "vector: verdict/brevity@2" in out
    assert "  - 1\n  + 2\n" in registry("diff", "vector/brevity@1", "vector/brevity@2")[1]
    assert "0 files, 0 bytes would be removed" in registry("gc")[1]


def test_what_a_stranger_wrote_moves_no_cursor(registry: Call, store: Store) -> None:
    registry("alias", "vector/brevity:canary", 1, "--reason", "fine\x1b[2J\x1b]0;title\x07\nand more")
    registry("delete", "vector/brevity@2", "--reason", "old\x1b[31m")
    for _, out, err in (registry("log"), registry("show", "vector/brevity@2"), registry("show", "vector/brevity@1")):
        assert out + err
        assert "\x1b" not in out + err
        assert "\x07" not in out + err
    assert "    fine\N{REPLACEMENT CHARACTER}[2J" in registry("log", "vector/brevity:canary")[1]
    assert "\n    and more\n" in registry("log", "vector/brevity:canary")[1]


@pytest.mark.parametrize("verb", MODULES)
def test_every_verb_has_json_and_one_example(verb: str) -> None:
    assert isinstance(registry_command, click.Group)
    command = registry_command.get_command(click.Context(registry_command), verb)
    assert command is not None
    assert (command.help or "").count("Example: engrain registry " + verb) == 1
    assert any("--json" in parameter.opts for parameter in command.params)


def test_listing_loads_neither_torch_nor_rich() -> None:
    code = (
        "import sys; sys.argv = ['engrain', 'registry', 'list']\nfrom engrain.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'obstore', 'rich', 'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
