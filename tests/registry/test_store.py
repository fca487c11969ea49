"""The store: round trips, equal digests, and what is left after faults, kills and hostile files."""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from engrain.core.errors import EngrainError, InputError, IntegrityError, UnknownNameError
from engrain.registry.store import Parent, Store, Version, default_root

PARENT = Parent("pairs", "sha256:" + "1" * 64)

numbers = st.one_of(st.integers(-(2**53) + 1, 2**53 - 1), st.floats(allow_nan=False, allow_infinity=False))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(st.characters(codec="utf-8")))
keys = st.text(st.characters(codec="utf-8"))
configs = st.dictionaries(
    keys, st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=8), max_size=4
)


@pytest.fixture(autouse=True, scope="module")
def quick_sync() -> Iterator[None]:
    """Sync nothing: only a power cut shows the difference, and on a busy disk it takes a second per publish."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def publish(store: Store, text: str = "one", name: str = "brevity") -> Version:
    return store.publish("vector", name, config={"text": text}, files={"x.bin": text.encode()}, parents=[PARENT])


def refused(error: type[EngrainError], match: str, *acts: Callable[[], object]) -> None:
    for act in acts:
        with pytest.raises(error, match=match):
            act()


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in root.rglob("*")}


def blob_files(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted([*root.glob("objects/sha256/*/*"), *root.glob("manifests/sha256/*/*")]):
        yield path.parent.name + path.name, path


def overwrite(path: Path, raw: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(raw)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    overwrite(path, bytes(raw))


def manifest_file(version: Version) -> Path:
    return version.store.root / "manifests" / "sha256" / version.digest[7:9] / version.digest[9:]


def history_file(store: Store) -> Path:
    return store.root / "names" / "vector" / "brevity" / "versions.jsonl"


# Round trips.


def test_what_was_published_is_resolved_in_another_store_object(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(range(256)) * 10_000)
    config = {"layer": 6, "strength": 1.5, "text": "größer ✓", "none": None}
    published = store.publish(
        "vector",
        "brevity",
        config=config,
        files={"small.txt": b"hello", "big.bin": tmp_path / "big.bin"},
        parents=[PARENT],
        media_types={"small.txt": "text/plain"},
    )
    found = Store(store.root).resolve("vector/brevity@1")
    assert found == published
    assert found.reference == "vector/brevity@1"
    assert found.config == config
    assert found.parents == (PARENT,)
    assert found.path("small.txt").read_bytes() == b"hello"
    assert found.path("big.bin").read_bytes() == (tmp_path / "big.bin").read_bytes()
    assert store.read(found.digest) == rfc8785.dumps(found.manifest)
    assert [layer["mediaType"] for layer in found.manifest["layers"]] == ["application/octet-stream", "text/plain"]


@settings(deadline=None)
@given(config=configs)
def test_a_config_comes_back_equal_and_can_be_published_again(shared_store: Store, config: dict[str, Any]) -> None:
    first = shared_store.publish("profile", "any", config=config, files={})
    assert first.config == config
    assert shared_store.publish("profile", "any", config=first.config, files={}) == first


def test_the_highest_version_is_meant_when_no_number_is_given(store: Store) -> None:
    one, two = publish(store, "one"), publish(store, "two")
    assert store.resolve("brevity", "vector") == two
    assert store.resolve("brevity@1", "vector") == one
    assert store.versions("vector", "brevity") == [one, two]
    assert store.names("vector") == ["brevity"]


def test_content_without_files_has_the_empty_layer_that_oci_asks_for(store: Store) -> None:
    version = store.publish("verdict", "brevity", config={"passed": True}, files={})
    empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert version.manifest["layers"] == [
        {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2}
    ]
    assert store.read(empty) == b"{}"
    with pytest.raises(UnknownNameError, match="There is none"):
        version.path("report.json")


# The same content.


def test_the_same_content_has_the_same_digest_in_two_stores_and_under_two_names(tmp_path: Path) -> None:
    parents = [PARENT, Parent("base", PARENT.digest)]
    digests = set()
    for home, name, order in (("a", "brevity", 1), ("b", "brevity", -1), ("b", "other", 1)):
        version = Store(tmp_path / home).publish(
            "vector",
            name,
            config=dict([("b", 1.0), ("a", [1, 2])][::order]),
            files=dict([("y", b"y"), ("x", b"x")][::order]),
            parents=parents[::order],
        )
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


def test_blobs_are_read_only_and_named_by_their_bytes(store: Store) -> None:
    publish(store)
    for name, path in blob_files(store.root):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
        assert path.stat().st_mode & 0o777 == 0o444


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
    assert synced[-2:] == [history_file(store).stat().st_ino, history_file(store).parent.stat().st_ino]


# An empty store, and one that cannot be written.


def test_a_store_that_does_not_exist_is_empty_and_stays_away(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    assert store.names("vector") == []
    assert store.versions("vector", "brevity") == []
    with pytest.raises(UnknownNameError, match=r"No vector 'brevity'. There is none"):
        store.resolve("vector/brevity")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blocked", ["mkdir", "open"])
def test_a_home_that_cannot_be_written_gives_one_clear_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    # Not chmod: the tests may run as root, whom it does not stop.
    store.root.mkdir()
    real = os.open

    def refuse(path: str, *rest: Any, **more: Any) -> int:
        if blocked == "open" and not rest[0] & os.O_CREAT:
            return real(path, *rest, **more)
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(os, blocked, refuse)
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
        with pytest.raises(InputError, match="No space left"):
            publish(store, "two")
    assert [version.number for version in store.versions("vector", "brevity")] == [1]
    assert publish(store, "two").number == 2
    assert list((store.root / "tmp").iterdir()) == []


def test_the_home_is_the_variable_or_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGRAIN_HOME", str(tmp_path / "there"))
    assert Store().root == tmp_path / "there"
    monkeypatch.delenv("ENGRAIN_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root().name == "engrain"


# What is refused.


def test_what_is_not_there_is_named_with_what_is(store: Store) -> None:
    version = publish(store)
    with pytest.raises(UnknownNameError, match=r"No vector 'brevty'. Did you mean 'brevity'"):
        store.resolve("vector/brevty")
    with pytest.raises(UnknownNameError, match=r"No version 'vector/brevity@2'. Did you mean 'vector/brevity@1'"):
        store.resolve("vector/brevity@2")
    with pytest.raises(UnknownNameError, match=r"No alias of 'vector/brevity' called 'stable'. There is none"):
        store.resolve("vector/brevity:stable")
    with pytest.raises(UnknownNameError, match=r"called 'y.bin'. Did you mean 'x.bin'"):
        version.path("y.bin")
    with pytest.raises(UnknownNameError, match="No kind 'vectr'"):
        store.names("vectr")


@pytest.mark.parametrize("name", ["..", ".", "/etc", "a/b", "../brevity", "A", "", "a\n", "a\0"])
def test_a_name_that_is_a_path_is_refused_everywhere(store: Store, name: str) -> None:
    with pytest.raises(InputError):
        publish(store, name=name)
    with pytest.raises(InputError):
        store.versions("vector", name)
    assert not store.root.exists()


@pytest.mark.parametrize("title", ["..", ".hidden", "/etc/passwd", "a/b", "a\\b", "", "a\n", "a\0", "ü", "a" * 129])
def test_a_title_that_is_not_a_simple_file_name_is_refused(store: Store, title: str) -> None:
    with pytest.raises(InputError, match="a title is a name"):
        store.publish("vector", "brevity", config={}, files={title: b""})
    assert not store.root.exists()


@pytest.mark.parametrize("config", [{"a": math.nan}, {"a": math.inf}, {"a": 2**53}, {"a": {1, 2}}, {"a": "\ud800"}])
def test_a_config_that_json_cannot_hold_is_refused(store: Store, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="holds something that JSON cannot"):
        store.publish("vector", "brevity", config=config, files={})
    assert not store.root.exists()


def test_a_media_type_needs_its_form_and_its_file(store: Store) -> None:
    with pytest.raises(InputError, match="is not a media type"):
        store.publish("vector", "brevity", config={}, files={"x": b""}, media_types={"x": "text"})
    with pytest.raises(UnknownNameError, match=r"called 'y'"):
        store.publish("vector", "brevity", config={}, files={"x": b""}, media_types={"y": "text/plain"})


def test_only_regular_files_are_taken_in(store: Store, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, why in [
        ("link", "symbolic link"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("none", "No such file"),
    ]:
        with pytest.raises(InputError, match=why):
            store.publish("vector", "brevity", config={}, files={"x": tmp_path / name})
    assert not store.root.exists()


def test_a_file_that_changes_while_it_is_published_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "growing"
    source.write_bytes(b"half")
    real = os.chmod

    def grow(path: str, mode: int) -> None:
        source.write_bytes(b"whole")
        real(path, mode)

    monkeypatch.setattr(os, "chmod", grow)  # the first one is that of registry.json, after the source was measured
    with pytest.raises(InputError, match="changed while it was published"):
        store.publish("vector", "brevity", config={}, files={"x": source})
    assert store.names("vector") == []
    assert list((store.root / "tmp").iterdir()) == []


def test_a_newer_format_is_refused_with_the_mend_and_left_alone(store: Store) -> None:
    publish(store)
    path = store.root / "registry.json"
    overwrite(path, path.read_bytes().replace(b'"format":1', b'"format":2'))
    before = tree(store.root)
    refused(
        InputError,
        r"has format 2, this engrain reads 1. Upgrade engrain",
        lambda: publish(store, "two"),
        lambda: store.resolve("vector/brevity"),
        lambda: store.names("vector"),
    )
    assert tree(store.root) == before


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"format":"1"}', b'{"format":0}', b'{"format":true}', b"\xff"])
def test_a_registry_file_without_a_format_is_named(store: Store, raw: bytes) -> None:
    publish(store)
    overwrite(store.root / "registry.json", raw)
    with pytest.raises(IntegrityError, match=r"registry\.json"):
        store.resolve("vector/brevity")


# Damage.


def test_one_flipped_bit_is_found_in_every_blob_and_manifest(store: Store) -> None:
    version = publish(store)
    paths = dict(blob_files(store.root))
    assert len(paths) == 3
    for name, path in paths.items():
        raw = path.read_bytes()
        flip(path)
        with pytest.raises(IntegrityError, match=name[2:]):
            store.read(f"sha256:{name}")
        with pytest.raises(IntegrityError, match=name[2:]):
            _ = store.resolve("vector/brevity").config, version.path("x.bin")
        overwrite(path, raw)
    assert store.resolve("vector/brevity").path("x.bin").read_bytes() == b"one"


@pytest.mark.parametrize("damage", ["cut", "gone", "link", "folder"])
def test_an_object_that_is_not_the_whole_file_is_found(store: Store, tmp_path: Path, damage: str) -> None:
    version = publish(store)
    path = version.path("x.bin")
    path.rename(tmp_path / "kept")
    if damage == "cut":
        path.write_bytes(b"on")
    elif damage == "link":
        path.symlink_to(tmp_path / "kept")
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(IntegrityError, match=path.name):
        version.path("x.bin")
    with pytest.raises(IntegrityError, match=path.name):
        store.read(version.manifest["layers"][0]["digest"])


def test_a_large_file_is_checked_by_its_size_and_not_hashed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(store)
    path = version.path("x.bin")
    monkeypatch.setattr("engrain.registry.store._REHASH_LIMIT", 3)
    overwrite(path, b"two")
    assert version.path("x.bin") == path
    overwrite(path, b"on")
    refused(IntegrityError, "is not a file of 3 bytes", lambda: version.path("x.bin"))


def test_a_cut_object_is_replaced_when_its_content_is_published_again(store: Store) -> None:
    path = publish(store, "one").path("x.bin")
    overwrite(path, b"")
    publish(store, "two")
    assert publish(store, "one").path("x.bin").read_bytes() == b"one"


def test_a_digest_that_is_a_path_is_refused(store: Store) -> None:
    for digest in ("sha256:../../registry.json", "sha256:" + "/" * 64, "registry.json", "sha256:" + "A" * 64, ""):
        with pytest.raises(InputError, match="64 hex digits"):
            store.read(digest)


def plant(store: Store, raw: bytes) -> None:
    """Make ``raw`` the manifest of vector/brevity@1, with a right digest and a right line."""
    publish(store)
    digest = hashlib.sha256(raw).hexdigest()
    path = store.root / "manifests" / "sha256" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    line = json.loads(history_file(store).read_bytes()) | {"manifest": f"sha256:{digest}"}
    del line["sha256"]
    history_file(store).write_bytes(
        rfc8785.dumps(line | {"sha256": hashlib.sha256(rfc8785.dumps(line)).hexdigest()}) + b"\n"
    )


def test_a_hostile_manifest_with_a_right_digest_is_named(store: Store) -> None:
    plant(store, rfc8785.dumps(publish(store).manifest | {"layers": [{"digest": "sha256:../../../etc/passwd"}]}))
    refused(
        IntegrityError,
        r"manifests/sha256.*lacks a media type, a digest or a size",
        lambda: store.resolve("vector/brevity"),
        lambda: store.versions("vector", "brevity"),
    )


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"a":1e999}'])
def test_a_manifest_that_is_not_a_json_object_is_refused(store: Store, raw: bytes) -> None:
    plant(store, raw)
    refused(IntegrityError, "manifests/sha256", lambda: store.resolve("vector/brevity"))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"layers":', b'"layers": '), (b'"schemaVersion":2', b'"schemaVersion":2,"schemaVersion":2'), (b":2}", b":2.0}")],
)
def test_a_manifest_that_another_program_may_read_otherwise_is_refused(store: Store, old: bytes, new: bytes) -> None:
    raw = store.read(publish(store).digest)
    assert raw.count(old) == 1
    plant(store, raw.replace(old, new))
    refused(IntegrityError, "not canonical JSON", lambda: store.resolve("vector/brevity"))


def test_every_cut_of_the_last_line_is_passed_over_and_mended(store: Store) -> None:
    publish(store, "one")
    start = history_file(store).stat().st_size
    publish(store, "two")
    raw = history_file(store).read_bytes()
    for end in range(start, len(raw)):
        history_file(store).write_bytes(raw[:end])
        assert store.resolve("vector/brevity").number == 1
    assert publish(store, "three").number == 2
    assert [version.config["text"] for version in store.versions("vector", "brevity")] == ["one", "three"]


def test_a_changed_line_is_an_error_with_file_and_line_and_nothing_is_appended(store: Store) -> None:
    for text in ("one", "two", "three"):
        publish(store, text)
    raw = history_file(store).read_bytes()
    lines = raw.splitlines(keepends=True)
    damaged = {
        2: [
            raw.replace(b'"v":2', b'"v":5'),
            lines[0] + lines[2],
            lines[0] + b"\n" + lines[2],
            lines[0] + lines[1].replace(b'"actor":"', b'"actor":"x') + lines[2],
            lines[0] + b"\0" * (len(lines[1]) - 1) + b"\n" + lines[2],
        ],
        3: [lines[0] + lines[1] + lines[1], lines[0] + lines[1] + lines[2].replace(b"sha256:", b"sha257:")],
    }
    for number, histories in damaged.items():
        for history in histories:
            history_file(store).write_bytes(history)
            refused(
                IntegrityError,
                rf"versions\.jsonl', line {number}\b",
                lambda: store.resolve("vector/brevity@1"),
                lambda: publish(store, "four"),
            )
            assert history_file(store).read_bytes() == history


def test_one_damaged_name_does_not_hide_the_others(store: Store, tmp_path: Path) -> None:
    publish(store)
    publish(store, name="other")
    history_file(store).write_bytes(b"rubbish\n")
    (store.root / "names" / "vector" / "linked").symlink_to(tmp_path)
    (store.root / "names" / "vector" / "empty").mkdir()
    (store.root / "names" / "vector" / "stray").write_bytes(b"")
    assert store.names("vector") == ["brevity", "linked", "other"]
    assert store.resolve("vector/other").number == 1


def test_a_name_that_is_a_symbolic_link_is_neither_read_nor_written(store: Store, tmp_path: Path) -> None:
    publish(store)
    outside = tmp_path / "outside"
    history_file(store).parent.rename(outside)
    history_file(store).parent.symlink_to(outside)
    before = tree(outside)
    refused(IntegrityError, "symbolic link", lambda: store.resolve("vector/brevity"), lambda: publish(store, "two"))
    assert tree(outside) == before


# Several processes, and processes that are killed.


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    search = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        text=True,
    )


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
    told: list[int] = []
    for writer in writers:
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
        told += map(int, output.split())
    assert sorted(told) == list(range(1, 81))
    versions = store.versions("vector", "brevity")
    assert [version.number for version in versions] == list(range(1, 81))
    assert len({version.digest for version in versions}) == 80


# One process that, for every system call with a lasting effect, forks a child that is killed just before it, just after
# it, and (writes) halfway through it; a store of its own for each. Syncs are steps, but sync nothing: see quick_sync.
KILLER = """
import os, signal, sys
from pathlib import Path
from engrain.registry.store import Store

def sync(handle):
    pass

os.fsync = sync
REAL = {name: getattr(os, name) for name in ("mkdir", "fsync", "chmod", "replace", "write", "ftruncate", "unlink")}
base, old, torn = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "torn"

def publish(root, text):
    Store(root).publish("vector", "brevity", config={"text": text}, files={"x.bin": text.encode()})

def prepare(root):
    for number in range(old):
        publish(root, f"old {number}")
    if torn:
        with open(root / "names/vector/brevity/versions.jsonl", "ab") as lines:
            lines.write(b'{"actor":"somebody","manif')

def publish_and_die(root, step, when):
    steps = []
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    def wrap(name, real):
        def call(*arguments, **more):
            steps.append(name)
            now = when if len(steps) == step else None
            if now == "before":
                die()
            if now == "half":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                die()
            try:
                return real(*arguments, **more)
            finally:
                if now == "after":
                    die()
        return call
    for name, real in REAL.items():
        setattr(os, name, wrap(name, real))
    publish(root, "new")
    for name, real in REAL.items():
        setattr(os, name, real)
    return steps

prepare(base / "rehearsal")
steps = publish_and_die(base / "rehearsal", 0, None)
for step, name in enumerate(steps, 1):
    for when in ("before", "after", "half")[: 3 if name == "write" else 2]:
        root = base / f"{step}-{name}-{when}"
        prepare(root)
        child = os.fork()
        if child == 0:
            publish_and_die(root, step, when)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, (step, name, when)
print(*steps)
"""


@pytest.mark.parametrize(("old", "torn"), [(0, "whole"), (2, "whole"), (1, "torn")])
def test_a_publish_killed_at_any_step_leaves_a_clean_store_and_the_right_next_number(
    tmp_path: Path, old: int, torn: str
) -> None:
    killer = run(KILLER, tmp_path, old, torn)
    output, _ = killer.communicate(timeout=60)
    assert killer.returncode == 0
    assert {"fsync", "chmod", "replace", "write"} <= set(output.split())
    assert ("ftruncate" in output) == (torn == "torn")
    outcomes = set()
    for root in sorted(tmp_path.iterdir()):
        store = Store(root)
        versions = store.versions("vector", "brevity")
        outcomes.add(len(versions) - old)
        texts = [f"old {number}" for number in range(old)] + ["new"]
        assert [version.config["text"] for version in versions] == texts[: len(versions)]
        assert [version.path("x.bin").read_text() for version in versions] == texts[: len(versions)]
        assert store.names("vector") == (["brevity"] if versions else [])
        for name, path in blob_files(root):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == name
        next_one = store.publish("vector", "brevity", config={"text": "next"}, files={"x.bin": b"new"})
        assert next_one.number == len(versions) + 1
        assert store.resolve("vector/brevity") == next_one
    assert outcomes == {0, 1}
