"""The direction of imports, and the packaging that the folders at the root need."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room and those it may import from, besides itself.
ALLOWED = {
    "core": set(),
    "registry": {"core"},
    "plugins": {"core", "registry"},
    "behaviors": {"plugins"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("room", ALLOWED)
def test_no_room_imports_upward(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            if name.split(".")[0] == "engrain":
                target = name.split(".")[1] if "." in name else "the face"
                assert target in ALLOWED[room] | {room}, f"{path.relative_to(ROOT)} imports {name}"


def test_behaviors_import_the_public_plugin_interface_alone() -> None:
    for path in (ROOT / "behaviors").rglob("*.py"):
        assert {name for name in imports(path) if name.startswith("engrain")} <= {"engrain.plugins"}, path


def test_every_room_is_named_in_each_place_that_packaging_needs() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    rooms = set(ALLOWED)
    assert {path.removeprefix("/src/engrain/") for path in build["exclude"]} == rooms
    assert set(wheel["only-include"]) == rooms | {"src/engrain"}
    assert wheel["sources"] == {"src/engrain": "engrain"} | {room: f"engrain/{room}" for room in rooms}
    for room in rooms:
        assert (ROOT / "src" / "engrain" / room).readlink() == Path("..", "..", room)


def test_a_wheel_holds_the_whole_tree_and_nothing_beside_engrain(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("engrain-*.whl")
    from zipfile import ZipFile

    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"engrain"}
    git = ["git", "-C", str(ROOT), "ls-files", *ALLOWED, "src/engrain"]
    listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout.splitlines()
    tracked = {path.removeprefix("src/engrain/") for path in listed} - set(ALLOWED)
    assert {f"engrain/{path}" for path in tracked} <= names
    assert "engrain/behaviors/listening/pairs.jsonl" in names
    assert "engrain/py.typed" in names


def test_files_stay_below_400_lines() -> None:
    for room in (*ALLOWED, "src/engrain/cli", "tests"):
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
