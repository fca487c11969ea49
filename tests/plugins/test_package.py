"""``engrain new`` and the example: packages that install, are found and pass their own tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engrain.core.errors import InputError, OutputExistsError
from engrain.plugins.package import write_package

ROOT = Path(__file__).parents[2]


def install(package: Path, target: Path) -> dict[str, str]:
    """Install without the network and return an environment in which it is there."""
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--target", str(target), str(package)], check=True, capture_output=True)
    return os.environ | {"PYTHONPATH": str(target)}


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["brevity", "two-words_3"])
def test_a_new_package_installs_is_found_and_passes_its_own_test(tmp_path: Path, name: str) -> None:
    package = tmp_path / "made" / name
    written = write_package(name, package)
    assert all(path.is_file() for path in written)
    environment = install(package, tmp_path / "site")
    assert "4 passed" in run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package))
    assert f"{name} " in run(environment, "-m", "engrain", "behaviors")


def test_the_example_package_installs_and_is_used(tmp_path: Path) -> None:
    example = ROOT / "examples" / "plain_words"
    environment = install(example, tmp_path / "site")
    assert "4 passed" in run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(example))
    shown = run(environment, "-m", "engrain", "behaviors", "show", "plain_words", "--json")
    assert '"package": "engrain-plain_words 0.1.0"' in shown or '"package": "engrain-plain-words 0.1.0"' in shown


def test_an_existing_folder_is_left_alone_and_replaced_whole_by_force(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("kept")
    with pytest.raises(OutputExistsError):
        write_package("brevity", folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    write_package("brevity", folder, force=True)
    assert not (folder / "notes.txt").exists()
    assert (folder / "pyproject.toml").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["", "Brevity", "../up", "a b", "1a", "a" * 129, "a\n"])
def test_what_cannot_name_a_behavior_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a behavior"):
        write_package(name, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
