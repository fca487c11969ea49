"""References: one grammar, read and written the same way; manifests and version lines that are not trusted."""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from brevity import overwrite
from engrain.core.errors import EngrainError, InputError, IntegrityError, UnknownNameError
from engrain.registry.blob import digest_of, fan_out, sha256
from engrain.registry.manifest import Parent, VersionLine, canonical, check_manifest, describe, frame, parse_object
from engrain.registry.reference import KINDS, Reference, locate
from engrain.registry.store import Store, Version

names = st.from_regex(r"[a-z][a-z0-9_-]{0,127}", fullmatch=True)
kinds = st.sampled_from(KINDS)
references = st.one_of(
    st.builds(Reference, kinds, names),
    st.builds(Reference, kinds, names, version=st.integers(1, 10**15 - 1)),
    st.builds(Reference, kinds, names, alias=names),
)


@given(references)
def test_a_reference_is_read_back_from_its_text(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference
    assert locate(str(reference), "profile") == reference


@given(references)
def test_the_default_kind_stands_in_for_a_missing_one_and_never_for_a_given_one(reference: Reference) -> None:
    bare = str(reference).partition("/")[2]
    assert Reference.parse(bare, reference.kind) == reference
    assert Reference.parse(str(reference), "profile") == reference


@given(st.one_of(st.text(), st.text("ab/@:09-_. \n", max_size=12)))
def test_any_text_is_a_reference_that_reads_back_or_one_line_of_complaint(text: str) -> None:
    try:
        said = str(Reference.parse(text, "vector"))
    except InputError as error:
        said = str(error)
        text = said
    assert said in (text, f"vector/{text}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "vector/",
        "vector/Brevity",
        "vector/brevity@0",
        "vector/brevity@03",
        "vector/brevity@+3",
        "vector/brevity@٣",
        "vector/brevity@",
        "vector/brevity:",
        "vector/brevity@2:stable",
        "vector/brevity:stable@2",
        "vector/brevity:7",
        "vector/../brevity",
        "vector//etc/passwd",
        "vector/brevity\n",
        "vector/" + "a" * 129,
        "vector/brevity@1000000000000000",
        "brevity",
        "",
    ],
)
def test_what_the_grammar_does_not_have_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InputError, match="Write KIND/NAME"):
        Reference.parse(text)


def test_an_unknown_kind_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"'vectors'. Did you mean 'vector'"):
        Reference.parse("vectors/brevity")


def test_a_reference_cannot_be_made_around_the_grammar() -> None:
    with pytest.raises(InputError, match="both"):
        Reference("vector", "brevity", version=1, alias="stable")
    with pytest.raises(InputError, match="whole number"):
        Reference("vector", "brevity", version=0)
    with pytest.raises(InputError, match="does not match"):
        Reference("vector", "..")


@pytest.mark.parametrize(
    ("role", "digest"),
    [("Pairs", "sha256:" + "0" * 64), ("pairs", "sha256:" + "A" * 64), ("pairs", "md5:" + "0" * 32), ("pairs", "")],
)
def test_a_parent_needs_a_role_and_a_digest(role: str, digest: str) -> None:
    with pytest.raises(InputError):
        Parent(role, digest)


DIGEST = "sha256:" + "0" * 64
TITLE, PARENTS = "org.opencontainers.image.title", "vnd.engrain.parents"


def manifest() -> dict[str, Any]:
    layer = {"mediaType": "text/plain", "digest": DIGEST, "size": 3}
    return frame("vector") | {
        "config": dict(layer),
        "layers": [layer | {"annotations": {TITLE: "x"}}, layer | {"annotations": {TITLE: "y"}}],
        "annotations": {PARENTS: json.dumps([{"role": "pairs", "digest": DIGEST}])},
    }


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "digest is a path": lambda m: m["layers"][0].update(digest="sha256:../../../../etc/passwd"),
    "digest of the config is a number": lambda m: m["config"].update(digest=5),
    "size is text": lambda m: m["layers"][0].update(size="3"),
    "size is a truth value": lambda m: m["layers"][0].update(size=True),
    "size is a fraction": lambda m: m["layers"][0].update(size=1.5),
    "size is negative": lambda m: m["layers"][0].update(size=-1),
    "media type is missing": lambda m: m["layers"][0].pop("mediaType"),
    "media type is a number": lambda m: m["config"].update(mediaType=5),
    "title is a path": lambda m: m["layers"][0]["annotations"].update({TITLE: "../x"}),
    "title is a list": lambda m: m["layers"][0]["annotations"].update({TITLE: []}),
    "title is there twice": lambda m: m["layers"][0]["annotations"].update({TITLE: "y"}),
    "title is missing": lambda m: m["layers"][0]["annotations"].pop(TITLE),
    "annotations of a layer are missing": lambda m: m["layers"][0].pop("annotations"),
    "annotations of a layer are text": lambda m: m["layers"][0].update(annotations="x"),
    "layer is text": lambda m: m.update(layers=["x"]),
    "layers are an object": lambda m: m.update(layers={}),
    "layers are missing": lambda m: m.pop("layers"),
    "layers are none": lambda m: m.update(layers=[]),
    "config is missing": lambda m: m.pop("config"),
    "kind is another": lambda m: m.update(artifactType="application/vnd.engrain.profile.v1+json"),
    "schema is another": lambda m: m.update(schemaVersion=1),
    "annotations are a list": lambda m: m.update(annotations=[]),
    "parents are not JSON": lambda m: m["annotations"].update({PARENTS: "["}),
    "parents are nested deeply": lambda m: m["annotations"].update({PARENTS: "[" * 100_000}),
    "parents are a number": lambda m: m["annotations"].update({PARENTS: "5"}),
    "parents are no text": lambda m: m["annotations"].update({PARENTS: 5}),
    "parent has no digest": lambda m: m["annotations"].update({PARENTS: '[{"role":"pairs"}]'}),
    "parent has a path": lambda m: m["annotations"].update({PARENTS: '[{"digest":"../x","role":"pairs"}]'}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_hostile_manifest_is_refused(edit: Callable[[dict[str, Any]], object]) -> None:
    hostile = manifest()
    check_manifest(hostile, rfc8785.dumps(hostile), "vector")
    edit(hostile)
    with pytest.raises((ValueError, RecursionError)):
        check_manifest(hostile, rfc8785.dumps(hostile), "vector")


def line(**changes: object) -> bytes:
    fields: dict[str, Any] = {
        "v": 2,
        "manifest": DIGEST,
        "time": "2026-01-02T03:04:05.000006Z",
        "actor": "me",
    } | changes
    return rfc8785.dumps(fields | {"sha256": sha256(rfc8785.dumps(fields))[7:]})


@pytest.mark.parametrize(
    "raw",
    [
        line(v=1),
        line(v=True),
        line(v="2"),
        line(manifest="sha256:../x"),
        line(manifest=None),
        line(time="yesterday"),
        line(time="2026-01-02T03:04:05"),
        line(time=5),
        line().replace(b'"me"', b'"you"'),
        b'{"v":2}',
        b"[]",
        b"",
        b"\xff",
    ],
)
def test_a_version_line_that_is_not_what_was_written_is_named_with_its_number(raw: bytes) -> None:
    assert VersionLine.parse(line(), Path("versions.jsonl"), 2).number == 2
    assert VersionLine.parse(line(later="fields"), Path("versions.jsonl"), 2).digest == DIGEST
    with pytest.raises(IntegrityError, match=r"'versions\.jsonl', line 2 "):
        VersionLine.parse(raw, Path("versions.jsonl"), 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"layers":', b'"layers": '), (b'"schemaVersion":2', b'"schemaVersion":2,"schemaVersion":2'), (b":2}", b":2.0}")],
)
def test_a_manifest_that_another_program_may_read_otherwise_is_refused(old: bytes, new: bytes) -> None:
    raw = rfc8785.dumps(manifest()).replace(old, new)
    assert raw.count(new) == 1
    with pytest.raises(ValueError, match="not canonical JSON"):
        check_manifest(parse_object(raw, "it"), raw, "vector")


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"a":NaN', b"5"])
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="'somewhere' is not"):
        parse_object(raw, "'somewhere'")


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, {1, 2}, "\ud800", {1: 2}])
def test_a_value_that_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="'vector/x' holds something that JSON cannot"):
        canonical({"a": value}, "vector/x")


@pytest.mark.parametrize("digest", ["sha256:../../registry.json", "sha256:" + "/" * 64, "x", DIGEST + "\n", ""])
def test_a_digest_that_is_a_path_is_refused(digest: str) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        fan_out(Path("objects"), digest)


def test_a_path_made_of_a_digest_gives_it_back() -> None:
    assert digest_of(fan_out(Path("objects"), DIGEST)) == DIGEST


def test_only_regular_files_are_taken_in(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, why in {"link": "symbolic link", "folder": "regular", "pipe": "regular", "none": "No such file"}.items():
        with pytest.raises(InputError, match=why):
            describe(tmp_path / name, "text/plain")


# Damage in a whole store.


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def publish(store: Store, text: str = "one", name: str = "brevity") -> Version:
    return store.publish("vector", name, config={"text": text}, files={"x.bin": text.encode()})


def refused(error: type[EngrainError], match: str, *acts: Callable[[], object]) -> None:
    for act in acts:
        with pytest.raises(error, match=match):
            act()


def history_file(store: Store) -> Path:
    return store.root / "names" / "vector" / "brevity" / "versions.jsonl"


def test_one_flipped_bit_is_found_in_every_blob_and_manifest(store: Store) -> None:
    version = publish(store)
    paths = [*store.root.glob("objects/sha256/*/*"), *store.root.glob("manifests/sha256/*/*")]
    assert len(paths) == 3
    for path in paths:
        raw = path.read_bytes()
        overwrite(path, raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(IntegrityError, match=path.name):
            store.read(f"sha256:{path.parent.name}{path.name}")
        with pytest.raises(IntegrityError, match=path.name):
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
    refused(IntegrityError, path.name, lambda: version.path("x.bin"))
    refused(IntegrityError, path.name, lambda: store.read(version.manifest["layers"][0]["digest"]))


def test_a_large_file_is_checked_by_its_size_and_not_hashed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(store)
    path = version.path("x.bin")
    monkeypatch.setattr("engrain.registry.version.REHASH_LIMIT", 3)
    overwrite(path, b"two")
    assert version.path("x.bin") == path
    overwrite(path, b"on")
    refused(IntegrityError, "is not a file of 3 bytes", lambda: version.path("x.bin"))


def test_a_cut_object_is_replaced_when_its_content_is_published_again(store: Store) -> None:
    path = publish(store, "one").path("x.bin")
    overwrite(path, b"")
    publish(store, "two")
    assert publish(store, "one").path("x.bin").read_bytes() == b"one"


def test_a_hostile_manifest_with_a_right_digest_and_a_right_line_is_named(store: Store) -> None:
    raw = rfc8785.dumps(publish(store).manifest | {"layers": [{"digest": "sha256:../../../etc/passwd"}]})
    path = fan_out(store.root / "manifests", sha256(raw))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    history_file(store).write_bytes(line(v=1, manifest=sha256(raw)) + b"\n")
    refused(
        IntegrityError,
        r"manifests/sha256.*lacks a media type, a digest or a size",
        lambda: store.resolve("vector/brevity"),
        lambda: store.versions("vector", "brevity"),
    )


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


def test_a_changed_line_is_an_error_with_file_and_line_and_the_other_versions_are_there(store: Store) -> None:
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
        3: [lines[0] + lines[1] + lines[2].replace(b"sha256:", b"sha257:")],
    }
    for number, histories in damaged.items():
        for history in histories:
            history_file(store).write_bytes(history)
            match = rf"versions\.jsonl', line {number}\b.*verify --repair"
            refused(IntegrityError, match, partial(store.resolve, f"vector/brevity@{number}"))
            assert store.resolve("vector/brevity@1").config == {"text": "one"}
            assert history_file(store).read_bytes() == history


def test_a_line_whose_number_was_there_before_counts_for_nothing(store: Store) -> None:
    for text in ("one", "two"):
        publish(store, text)
    raw = history_file(store).read_bytes()
    history_file(store).write_bytes(raw + raw.splitlines(keepends=True)[0])
    assert store.resolve("vector/brevity").config == {"text": "two"}
    assert publish(store, "three").number == 3
    assert [version.config["text"] for version in store.versions("vector", "brevity")] == ["one", "two", "three"]


def test_nothing_is_appended_after_a_damaged_line(store: Store) -> None:
    publish(store, "one")
    raw = history_file(store).read_bytes()
    history_file(store).write_bytes(raw.replace(b'"actor":"', b'"actor":"x'))
    damaged = history_file(store).read_bytes()
    refused(IntegrityError, r"line 1 is damaged", lambda: publish(store, "two"))
    assert history_file(store).read_bytes() == damaged


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
    before = (outside / "versions.jsonl").read_bytes()
    refused(IntegrityError, "symbolic link", lambda: store.resolve("vector/brevity"), lambda: publish(store, "two"))
    assert (outside / "versions.jsonl").read_bytes() == before
