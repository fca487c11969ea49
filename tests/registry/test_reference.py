"""References: one grammar, read and written the same way; manifests and version lines that are not trusted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from engrain.core.errors import InputError, IntegrityError, UnknownNameError
from engrain.registry.reference import KINDS, Parent, Reference, VersionLine, check_manifest, frame, sha256

names = st.from_regex(r"[a-z][a-z0-9_-]{0,127}", fullmatch=True)
kinds = st.sampled_from(KINDS)
references = st.one_of(
    st.builds(Reference, kinds, names),
    st.builds(Reference, kinds, names, version=st.integers(1, 10**15 - 1)),
    st.builds(Reference, kinds, names, alias=names),
)


@settings(deadline=None)
@given(references)
def test_a_reference_is_read_back_from_its_text(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@settings(deadline=None)
@given(references)
def test_the_default_kind_stands_in_for_a_missing_one_and_never_for_a_given_one(reference: Reference) -> None:
    bare = str(reference).partition("/")[2]
    assert Reference.parse(bare, reference.kind) == reference
    assert Reference.parse(str(reference), "profile") == reference


@settings(deadline=None)
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
