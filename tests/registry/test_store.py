"""The store: round trips, equal digests, and what is left after faults, kills and hostile files."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brevity import overwrite
from engrain.core.errors import EngrainError, InputError, IntegrityError, UnknownNameError
from engrain.registry.store import Parent, Store, Version, default_root

PARENT = Parent("pairs", "sha256:" + "1" * 64)

texts = st.text(st.characters(codec="utf-8"))
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def publish(store: Store, text: str = "one", name: str = "brevity", title: str = "x.bin", **more: Any) -> Version:
    files = {title: text.encode()}
    return store.publish("vector", name, config={"text": text}, files=files, parents=[PARENT], **more)


def refused(error: type[EngrainError], match: str, *acts: Callable[[], object]) -> None:
    for act in acts:
        with pytest.raises(error, match=match):
            act()


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in root.rglob("*")}


def history_file(store: Store) -> Path:
    return store.root / "names" / "vector" / "brevity" / "versions.jsonl"


# Round trips.


def test_what_was_published_is_resolved_in_another_store_object(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(range(256)) * 10_000)
    config = {"layer": 6, "strength": 1.5, "text": "größer ✓", "none": None}
    files: dict[str, bytes | Path] = {"small.txt": b"hello", "big.bin": tmp_path / "big.bin"}
    types = {"small.txt": "text/plain"}
    published = store.publish("vector", "brevity", config=config, files=files, parents=[PARENT], media_types=types)
    found = Store(store.root).resolve("vector/brevity@1")
    assert found == published
    assert (found.reference, found.config, found.parents) == ("vector/brevity@1", config, (PARENT,))
    assert found.path("small.txt").read_bytes() == b"hello"
    assert found.path("small.txt").stat().st_mode & 0o777 == 0o444
    assert found.path("big.bin").read_bytes() == (tmp_path / "big.bin").read_bytes()
    assert store.read(found.digest) == rfc8785.dumps(found.manifest)
    assert [layer["mediaType"] for layer in found.manifest["layers"]] == ["application/octet-stream", "text/plain"]


# One store for all examples is as good as one each.
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(texts, values, max_size=4))
def test_a_config_comes_back_equal_and_can_be_published_again(store: Store, config: dict[str, Any]) -> None:
    first = store.publish("profile", "any", config=config, files={})
    assert first.config == config
    assert store.publish("profile", "any", config=first.config, files={}) == first


def test_the_highest_version_is_meant_when_no_number_is_given(store: Store) -> None:
    one, two = publish(store, "one"), publish(store, "two")
    assert store.resolve("brevity", "vector") == two
    assert store.resolve("brevity@1", "vector") == one
    assert store.versions("vector", "brevity") == [one, two]
    assert store.names("vector") == ["brevity"]


def test_content_without_files_has_the_empty_layer_that_oci_asks_for(store: Store) -> None:
    version = store.publish("verdict", "brevity", config={"passed": True}, files={})
    digest = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    media_type = "application/vnd.oci.empty.v1+json"
    assert version.manifest["layers"] == [{"mediaType": media_type, "digest": digest, "size": 2}]
    assert store.read(digest) == b"{}"
    refused(UnknownNameError, "There is none", lambda: version.path("report.json"))


# The same content.


def test_the_same_content_has_the_same_digest_in_two_stores_and_under_two_names(tmp_path: Path) -> None:
    parents = [PARENT, Parent("base", PARENT.digest)]
    digests = set()
    for home, name, order in (("a", "brevity", 1), ("b", "brevity", -1), ("b", "other", 1)):
        config = dict([("b", 1.0), ("a", [1, 2])][::order])
        files = dict([("y", b"y"), ("x", b"x")][::order])
        version = Store(tmp_path / home).publish("vector", name, config=config, files=files, parents=parents[::order])
        digests.add(version.digest)
    assert len(digests) == 1


def test_the_digest_of_format_1_never_changes(store: Store) -> None:
    # Computed when the format was made; another value here means that every store in the world is unreadable.
    assert publish(store).digest == "sha256:65d02e12b0b52fd6c0b64617f5d1dc66b3a5320a3523174e6f6378eaddef5fcb"


def test_publishing_the_highest_version_again_writes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(store)
    before = tree(store.root)
    real = os.open

    def open_to_read(path: Path, flags: int, mode: int = 0o777) -> int:
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", open_to_read)
    assert publish(store) == first
    assert tree(store.root) == before


def test_publishing_an_older_content_again_gives_a_new_number_and_no_new_object(store: Store) -> None:
    first, _ = publish(store, "one"), publish(store, "two")
    before = tree(store.root / "objects") | tree(store.root / "manifests")
    again = publish(store, "one")
    assert (again.number, again.digest) == (3, first.digest)
    assert tree(store.root / "objects") | tree(store.root / "manifests") == before


def test_bytes_are_on_the_disk_before_anything_refers_to_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    unsynced_folders: set[int] = set()

    def replace(source: str, target: Path, real: Callable[..., None] = os.replace) -> None:
        assert os.stat(source).st_ino in synced
        unsynced_folders.add(target.parent.stat().st_ino)
        real(source, target)

    def mkdir(path: Path, *mode: int, real: Callable[..., None] = os.mkdir) -> None:
        real(path, *mode)
        unsynced_folders.add(path.parent.stat().st_ino)

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        unsynced_folders.discard(synced[-1])

    def write(handle: int, raw: bytes, real: Callable[..., int] = os.write) -> int:
        assert not unsynced_folders
        return real(handle, raw)

    for name, fake in {"replace": replace, "mkdir": mkdir, "fsync": fsync, "write": write}.items():
        monkeypatch.setattr(os, name, fake)
    publish(store)
    journal = store.root / "journal"
    order = [history_file(store), history_file(store).parent, journal / "events.jsonl", journal / "HEAD", journal]
    assert synced[-5:] == [path.stat().st_ino for path in order]


# An empty store, and one that cannot be written.


def test_a_store_that_does_not_exist_is_empty_and_stays_away(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    assert store.names("vector") == []
    assert store.versions("vector", "brevity") == []
    refused(UnknownNameError, r"No vector 'brevity'. There is none", lambda: store.resolve("vector/brevity"))
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_gives_one_clear_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.root.mkdir()

    def refuse(path: Path, mode: int = 0o777) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)  # not chmod: the tests may run as root, whom that does not stop
    assert store.names("vector") == []
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\). Set ENGRAIN_HOME") as caught:
        publish(store)
    assert "\n" not in str(caught.value)


def test_a_home_below_a_file_gives_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "home")
    refused(InputError, "Set ENGRAIN_HOME", lambda: publish(store), lambda: store.resolve("vector/brevity"))


def test_a_disk_that_fills_up_leaves_the_versions_as_they_were(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "one")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, raw: real(handle, raw[:50]))
        refused(InputError, "No space left", lambda: publish(store, "two"))
    assert [version.number for version in store.versions("vector", "brevity")] == [1]
    assert publish(store, "two").number == 2
    assert list((store.root / "tmp").iterdir()) == []


def test_the_home_is_the_variable_or_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGRAIN_HOME", str(tmp_path / "there"))
    assert Store().root == tmp_path / "there"
    monkeypatch.delenv("ENGRAIN_HOME")
    assert default_root().name == "engrain"


# What is refused.


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("vector/brevty", "No vector 'brevty'. Did you mean 'brevity'"),
        ("vector/brevity@2", "No version 'vector/brevity@2'. Did you mean 'vector/brevity@1'"),
        ("vector/brevity:stable", "No alias of 'vector/brevity' called 'stable'. There is none"),
        ("vectr/brevity", "No kind 'vectr'. Did you mean 'vector'"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(store: Store, reference: str, message: str) -> None:
    version = publish(store)
    refused(UnknownNameError, message, lambda: store.resolve(reference))
    refused(UnknownNameError, r"called 'y\.bin'. Did you mean 'x\.bin'", lambda: version.path("y.bin"))


@pytest.mark.parametrize("name", ["..", ".", "/etc", "a/b", "../brevity", "A", "", "a\n", "a\0"])
def test_a_name_that_is_a_path_is_refused_everywhere(store: Store, name: str) -> None:
    with pytest.raises(InputError):
        publish(store, name=name)
    with pytest.raises(InputError):
        store.versions("vector", name)
    assert not store.root.exists()


@pytest.mark.parametrize("title", ["..", ".hidden", "/etc/passwd", "a/b", "a\\b", "", "a\n", "a\0", "ü", "a" * 129])
def test_a_title_that_is_not_a_simple_file_name_is_refused(store: Store, title: str) -> None:
    refused(InputError, "a title is a name", lambda: publish(store, title=title))
    assert not store.root.exists()


def test_a_media_type_needs_its_form_and_its_file(store: Store) -> None:
    refused(InputError, "is not a media type", lambda: publish(store, media_types={"x.bin": "text"}))
    refused(UnknownNameError, "called 'y'", lambda: publish(store, media_types={"y": "text/plain"}))


def test_a_file_that_changes_while_it_is_published_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "growing"
    source.write_bytes(b"half")
    # The first chmod is that of registry.json, after the source was measured.
    monkeypatch.setattr(os, "chmod", lambda path, mode: source.write_bytes(b"whole"))
    refused(InputError, "changed while", lambda: store.publish("vector", "brevity", config={}, files={"x": source}))
    assert store.names("vector") == []
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"format":"1"}', b'{"format":0}', b'{"format":true}', b"\xff"])
def test_a_registry_file_without_a_format_is_named(store: Store, raw: bytes) -> None:
    publish(store)
    overwrite(store.root / "registry.json", raw)
    refused(IntegrityError, r"registry\.json", lambda: store.resolve("vector/brevity"))


def test_a_newer_format_is_refused_with_the_mend_and_left_alone(store: Store) -> None:
    publish(store)
    overwrite(store.root / "registry.json", b'{"format":2}')
    before = tree(store.root)
    message = "has format 2, this engrain reads 1. Upgrade engrain"
    refused(InputError, message, lambda: publish(store, "two"), lambda: store.resolve("vector/brevity"))
    refused(InputError, message, lambda: store.names("vector"), lambda: store.read(PARENT.digest))
    assert tree(store.root) == before


# Several processes, and processes that are killed.


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    return output


def test_four_processes_that_publish_to_one_name_share_the_numbers_without_a_gap(store: Store) -> None:
    code = """
import sys
from pathlib import Path
from engrain.registry.store import Store
root, me = Path(sys.argv[1]), sys.argv[2]
for turn in range(20):
    print(Store(root).publish("vector", "brevity", config={"me": me, "turn": turn}, files={"x": b"same"}).number)
"""
    writers = [run(code, store.root, me) for me in range(4)]
    told = [int(number) for writer in writers for number in finish(writer).split()]
    assert sorted(told) == list(range(1, 81))
    versions = store.versions("vector", "brevity")
    assert [version.number for version in versions] == list(range(1, 81))
    assert len({version.digest for version in versions}) == 80


# For every system call with a lasting effect this forks a child that is killed before it (so after the one before) and,
# when it writes, halfway through it; a store of its own for each. Syncs are steps but sync nothing: see quick_sync.
KILLER = """
import itertools, os, signal, sys
from pathlib import Path
from engrain.registry.store import Store

base, old, torn = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "torn"
os.fsync = lambda handle: None

def publish(root, text):
    Store(root).publish("vector", "brevity", config={"text": text}, files={"x.bin": text.encode()})

def kill_at(step, when):
    calls = itertools.count(1)
    def wrap(name, real):
        def call(*arguments, **more):
            if next(calls) == step:
                if when == "half" and name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)
        return call
    for name in ("mkdir", "fsync", "chmod", "replace", "write", "ftruncate", "unlink"):
        setattr(os, name, wrap(name, getattr(os, name)))

for step, when in ((step, when) for step in range(1, 100) for when in ("before", "half")):
    root = base / f"{step}-{when}"
    for number in range(old):
        publish(root, f"old {number}")
    if torn:
        with open(root / "names/vector/brevity/versions.jsonl", "ab") as lines:
            lines.write(b'{"actor":"somebody","manif')
    child = os.fork()
    if child == 0:
        kill_at(step, when)
        publish(root, "new")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(step - 1)
"""


@pytest.mark.parametrize(("old", "torn"), [(0, "whole"), (2, "whole"), (1, "torn")])
def test_a_publish_killed_at_any_step_leaves_a_clean_store_and_the_right_next_number(
    tmp_path: Path, old: int, torn: str
) -> None:
    assert int(finish(run(KILLER, tmp_path, old, torn))) in range(16, 99)  # steps
    outcomes = set()
    for root in sorted(tmp_path.iterdir()):
        store = Store(root)
        versions = store.versions("vector", "brevity")
        outcomes.add(len(versions) - old)
        texts = [*(f"old {number}" for number in range(old)), "new"][: len(versions)]
        assert [version.config["text"] for version in versions] == texts
        assert [version.path("x.bin").read_text() for version in versions] == texts
        assert store.names("vector") == (["brevity"] if versions else [])
        for path in [*root.glob("objects/sha256/*/*"), *root.glob("manifests/sha256/*/*")]:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name
        next_one = store.publish("vector", "brevity", config={"text": "next"}, files={"x.bin": b"new"})
        assert next_one.number == len(versions) + 1
        assert store.resolve("vector/brevity") == next_one
    assert outcomes == {0, 1}
