"""Push and pull: a folder, memory and a real S3 server on loopback; resumed, hashed, never overwritten."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from obstore.store import MemoryStore, S3Store

from brevity import CANARY, STABLE, overwrite
from engrain.core.errors import ConflictError, InputError, IntegrityError, UnknownNameError
from engrain.plugins.manager import build_manager
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.delete import delete
from engrain.registry.mark import Target, ref_record
from engrain.registry.objects import ObjectRemote
from engrain.registry.provenance import Provenance
from engrain.registry.reference import Reference
from engrain.registry.remote import FolderRemote, Remote
from engrain.registry.repair import repair
from engrain.registry.sealed import seal
from engrain.registry.store import Parent, Store, Version
from engrain.registry.transfer import pull, push

MADE = Provenance("extract", {"layers": "all"}, {"data": 0}, {"pairs": "sha256:" + "1" * 64})


def publish(store: Store, number: int, kind: str = "vector", *parents: Parent) -> Version:
    config = {"number": number, "passed": True}
    files: dict[str, bytes | Path] = {} if kind == "verdict" else {"x.bin": f"content {number}".encode()}
    return store.publish(kind, "brevity", config=config, files=files, parents=parents, provenance=MADE)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two versions with verdicts, a deleted third, a protected alias."""
    made = Store(tmp_path / "home")
    for number in (1, 2, 3):
        version = publish(made, number)
        publish(made, number, "verdict", Parent("vector", version.digest))
    move_alias(made, STABLE, 1)
    move_alias(made, STABLE, 2)
    delete(made, Reference("vector", "brevity", 3), "holds private data")
    return made


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of moto's S3 server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urlopen(f"{address}/moto-api/data.json").close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
        server.terminate()


def s3_remote(address: str, bucket: str) -> ObjectRemote:
    options: Any = {"region": "us-east-1", "access_key_id": "x", "secret_access_key": "y"}
    store = S3Store(bucket, endpoint=address, client_options={"allow_http": True}, prefix="team/registry", **options)
    return ObjectRemote(f"s3://{bucket}/team/registry", store)


def make_bucket(address: str, bucket: str) -> None:
    import boto3

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=bucket)


@pytest.fixture(params=["folder", "memory", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """Each kind in turn, empty."""
    if request.param == "folder":
        return FolderRemote(tmp_path / "remote")
    if request.param == "memory":
        return ObjectRemote("memory://x", MemoryStore())
    address = request.getfixturevalue("s3_server")
    bucket = f"b{abs(hash(request.node.name)) % 10**12}"
    make_bucket(address, bucket)
    return s3_remote(address, bucket)


# The five verbs.


def test_every_remote_keeps_its_promises(remote: Remote, tmp_path: Path) -> None:
    key, ref = "objects/sha256/ab/" + "c" * 62, "refs/vector/brevity/stable"
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    remote.check()
    assert remote.get(key) is None
    assert remote.put(key, tmp_path / "big")
    assert not remote.put(key, b"other")
    assert b"".join(remote.get(key) or ()) == bytes(3 << 20)
    assert not remote.swap(ref, b"1", b"0")
    assert remote.swap(ref, b"1", None)
    assert not remote.swap(ref, b"2", None)
    assert not remote.swap(ref, b"2", b"0")
    assert remote.swap(ref, b"2", b"1")
    assert b"".join(remote.get(ref) or ()) == b"2"
    assert list(remote.list("objects/")) == [(key, 3 << 20)]
    assert list(remote.list("names/")) == []


@pytest.mark.parametrize(
    "key",
    ["../x", "/etc/passwd", "objects/../../x", "refs/vector/brevity/../x", "registry.json", "", "objects/sha256/ab"],
)
def test_a_key_that_leads_elsewhere_is_refused(remote: Remote, key: str) -> None:
    for act in (lambda: remote.get(key), lambda: remote.put(key, b""), lambda: remote.swap(key, b"", None)):
        with pytest.raises(InputError, match="no key of a registry"):
            act()


# Push and pull.


def test_what_was_pushed_is_pulled_with_numbers_digests_and_aliases(store: Store, other: Store, remote: Remote) -> None:
    pushed = push(store, remote)
    assert (len(pushed.versions), pushed.aliases, pushed.remarks) == (6, ["vector/brevity:stable"], [])
    pulled = pull(other, remote)
    assert sorted(pulled.versions) == sorted(pushed.versions)
    assert (pulled.aliases, pulled.remarks) == (["vector/brevity:stable"], [])
    for number in (1, 2):
        reference = f"vector/brevity@{number}"
        assert other.resolve(reference) == store.resolve(reference)
        assert other.resolve(reference).path("x.bin").read_bytes() == f"content {number}".encode()
        statement = json.loads(other.read(other.resolve(reference).provenance or ""))
        assert statement["subject"][0]["digest"]["sha256"] == other.resolve(reference).digest[7:]
    assert other.resolve(STABLE).number == 2
    with pytest.raises(UnknownNameError, match="holds private data"):
        other.resolve("vector/brevity@3")
    assert audit(other).problems == []
    assert publish(other, 4).number == 4


def test_a_second_push_or_pull_copies_nothing_and_a_later_one_what_is_new(
    store: Store, other: Store, remote: Remote
) -> None:
    push(store, remote)
    assert (push(store, remote).objects, push(store, remote).versions) == (0, [])
    pull(other, remote)
    again = pull(other, remote)
    assert (again.objects, again.versions, again.aliases) == (0, [], [])
    publish(store, 4)
    assert (push(store, remote).objects, pull(other, remote).versions) == (4, ["vector/brevity@4"])


def test_a_transfer_that_was_interrupted_goes_on_where_it_was(store: Store, other: Store, tmp_path: Path) -> None:
    class Broken(FolderRemote):
        left = 5

        def put(self, key: str, source: bytes | Path) -> bool:
            self.left -= 1
            if self.left < 0:
                raise InputError("the network is down")
            return super().put(key, source)

        def get(self, key: str) -> Iterable[bytes] | None:
            self.left -= 1
            if self.left < 0:
                raise InputError("the network is down")
            return super().get(key)

    remote = Broken(tmp_path / "remote")
    seen = 0
    for act in (partial(push, store, remote), partial(pull, other, remote)):
        while True:
            remote.left = 5
            try:
                act()
            except InputError:
                assert audit(other).problems == []
                seen += 1
                if seen % 2:
                    continue
                remote.left = 10**6
                act()
            break
    assert seen >= 2
    assert other.resolve(STABLE) == store.resolve(STABLE)
    assert audit(other).problems == []


def test_versions_that_were_published_apart_are_a_conflict_on_either_side(
    store: Store, other: Store, remote: Remote
) -> None:
    push(store, remote, [Reference("vector", "brevity")])
    publish(other, 9)
    for act in (partial(push, other, remote), partial(pull, other, remote)):
        with pytest.raises(ConflictError, match=r"'vector/brevity@1' in .* is another version than here"):
            act()
    assert [one.config["number"] for one in other.versions("vector", "brevity")] == [9]


def test_an_alias_there_moves_only_forward_from_where_it_was_here(store: Store, other: Store, remote: Remote) -> None:
    push(store, remote)
    pull(other, remote)
    move_alias(store, STABLE, 1)
    assert push(store, remote).aliases == ["vector/brevity:stable"]
    # The other registry was never told: its alias stays, and what it pushes does not undo the move.
    assert "left alone" in pull(other, remote).remarks[0]
    assert other.resolve(STABLE).number == 2
    publish(other, 4)
    move_alias(other, CANARY, 4)
    assert push(other, remote).aliases == ["vector/brevity:canary"]
    key = "refs/vector/brevity/stable"
    assert b'"v":1}' in b"".join(remote.get(key) or ())


def test_an_alias_that_is_protected_here_is_not_made_without_its_verdict(
    store: Store, other: Store, remote: Remote
) -> None:
    push(store, remote)
    pulled = pull(other, remote, [Reference("vector", "brevity")])
    assert pulled.aliases == []
    assert "is protected" in pulled.remarks[0]
    assert other.names("verdict") == []


def test_an_alias_on_a_deleted_version_stops_nothing(store: Store, other: Store, tmp_path: Path) -> None:
    push(store, remote := FolderRemote(tmp_path / "remote"))
    lost = store.history("vector", "brevity").lines()[2]
    remote.put("refs/vector/brevity/canary", ref_record(str(CANARY), Target(3, lost.digest), 1, "2026"))
    pulled = pull(other, remote)
    assert "holds private data" in pulled.remarks[0]
    assert pulled.aliases == ["vector/brevity:stable"]


def test_names_are_asked_for_whole_and_by_what_there_is(store: Store, other: Store, remote: Remote) -> None:
    push(store, remote)
    with pytest.raises(UnknownNameError, match="Did you mean 'vector/brevity'"):
        pull(other, remote, [Reference("vector", "brevty")])
    with pytest.raises(InputError, match="names travel whole"):
        push(store, remote, [Reference("vector", "brevity", 1)])


def test_what_is_damaged_here_is_not_sent(store: Store, remote: Remote) -> None:
    path = store.resolve("vector/brevity@1").path("x.bin")
    overwrite(path, b"content 7")
    with pytest.raises(IntegrityError, match="damaged and was not sent"):
        push(store, remote)
    assert list(remote.list("names/")) == []


def test_a_damaged_object_is_fetched_back(store: Store, remote: Remote) -> None:
    push(store, remote)
    path = store.resolve("vector/brevity@1").path("x.bin")
    overwrite(path, b"content 7")
    repair(store, audit(store).problems, remote.get)
    assert audit(store).problems == []


# Remotes that are not to be trusted.


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    """A folder that was pushed to."""
    push(store, FolderRemote(tmp_path / "remote"))
    return tmp_path / "remote"


def object_of(store: Store, folder: Path) -> Path:
    return folder / store.resolve("vector/brevity@1").path("x.bin").relative_to(store.root)


def rewrite(path: Path, raw: bytes) -> None:
    path.unlink()
    path.write_bytes(raw)


HOSTILE: dict[str, tuple[Callable[[Store, Path], object], str]] = {
    "an object is another": (lambda s, f: rewrite(object_of(s, f), b"content 7"), "does not hold the bytes"),
    "an object is endless": (lambda s, f: rewrite(object_of(s, f), bytes(1 << 21)), "more than 9 bytes"),
    "an object is missing": (lambda s, f: object_of(s, f).unlink(), "lacks the object"),
    "a manifest is missing": (lambda s, f: shutil.rmtree(f / "manifests"), "lacks the manifest"),
    "a line is changed": (
        lambda s, f: rewrite(f / "names/vector/brevity/versions/1", b'{"v":1}'),
        "versions/1' in .* is damaged",
    ),
    "a line is that of another number": (
        lambda s, f: rewrite(
            f / "names/vector/brevity/versions/1", (f / "names/vector/brevity/versions/2").read_bytes()
        ),
        "is not the line of that version",
    ),
    "a line has a path for a digest": (
        lambda s, f: rewrite(
            f / "names/vector/brevity/versions/1",
            seal({"v": 1, "manifest": "sha256:../../x", "time": "2026-01-01T00:00:00Z", "actor": "x"}),
        ),
        "is not the line of that version",
    ),
    "a number is missing": (lambda s, f: (f / "names/vector/brevity/versions/1").unlink(), "lacks versions"),
    "an alias points elsewhere": (
        lambda s, f: rewrite(
            f / "refs/vector/brevity/stable", ref_record(str(STABLE), Target(1, "sha256:" + "0" * 64), 1, "2026")
        ),
        "points at another version",
    ),
    "an alias is rubbish": (lambda s, f: rewrite(f / "refs/vector/brevity/stable", b"x"), "stable' in .* is damaged"),
}


@pytest.mark.parametrize(("damage", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_a_remote_has_wrong_is_not_taken(
    store: Store, other: Store, folder: Path, damage: Callable[[Store, Path], object], message: str
) -> None:
    damage(store, folder)
    with pytest.raises(IntegrityError, match=message):
        pull(other, FolderRemote(folder))
    assert audit(other).problems == []


def test_links_in_a_remote_are_neither_followed_nor_listed(store: Store, other: Store, folder: Path) -> None:
    path = object_of(store, folder)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        pull(other, FolderRemote(folder))
    path.unlink()
    (folder / "elsewhere").rename(path)
    (folder / "objects").rename(folder / "real")
    (folder / "objects").symlink_to(folder / "real")
    with pytest.raises(InputError, match="symbolic link, which is not followed"):
        pull(other, FolderRemote(folder))


def test_what_is_no_key_of_ours_is_passed_over(store: Store, other: Store, folder: Path) -> None:
    for stray in ("names/vector/brevity/versions/x", "names/vector/Évil/versions/1", "names/stray", "objects/README"):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_bytes(b"rubbish")
    assert len(pull(other, FolderRemote(folder)).versions) == 6


def test_a_registry_is_not_pushed_to_as_if_it_were_a_remote(store: Store, other: Store) -> None:
    publish(other, 1)
    with pytest.raises(InputError, match="is a registry itself"):
        push(store, FolderRemote(other.root))


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_pushed(store: Store) -> None:
    class Careless(ObjectRemote):
        def put(self, key: str, source: bytes | Path) -> bool:
            self._obstore.put(self._store, key, source, mode="overwrite")
            return True

    remote = Careless("memory://x", MemoryStore())
    with pytest.raises(InputError, match=r"does not honor conditional writes.*nothing was pushed"):
        push(store, remote)
    assert list(remote.list("")) == []


def test_a_remote_that_cannot_be_reached_gives_one_line() -> None:
    options: Any = {"region": "us-east-1", "access_key_id": "x", "secret_access_key": "y"}
    never: Any = {"allow_http": True}
    retry: Any = {"max_retries": 0}
    closed = S3Store("b", endpoint="http://127.0.0.1:9", client_options=never, retry_config=retry, **options)
    with pytest.raises(InputError, match=r"The remote 's3://b' cannot be used: ") as caught:
        ObjectRemote("s3://b", closed).check()
    assert "\n" not in str(caught.value)


def test_a_remote_is_found_by_its_scheme_and_its_keys_in_the_environment(
    tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    make_bucket(s3_server, "team")
    keys = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    for name, value in (keys | {"ENDPOINT": s3_server}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    plugins = build_manager()
    assert plugins.remote(str(tmp_path)).where == str(tmp_path)
    assert len(push(store, plugins.remote("s3://team/registry")).versions) == 6
    assert len(pull(Store(tmp_path / "again"), plugins.remote("s3://team/registry")).versions) == 6
    with pytest.raises(UnknownNameError, match="No kind of remote 'ftp'"):
        plugins.remote("ftp://x")
