"""Profiles: the schema, overrides, and what is refused."""

import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engrain.core.errors import ProfileError
from engrain.core.profile import Profile

GOOD = """\
# engrain chat --profile pair-programming.yaml
model: demo
behaviors:
  listening:      {vector: "vector/listening:stable", strength: 1.2}
  not_rushing:    {task_vector: "task-vector/not_rushing@3", scale: 1.0}
  mode_awareness: {vector: "vector/mode_awareness", strength: 0.8, enabled: false}
"""


def test_a_profile_says_what_is_on_in_the_order_of_the_file() -> None:
    profile = Profile.parse(GOOD)
    assert list(profile.behaviors) == ["listening", "not_rushing", "mode_awareness"]
    assert list(profile.enabled) == ["listening", "not_rushing"]
    assert profile.behaviors["listening"].strength == 1.2
    assert profile.behaviors["listening"].layer is None


def test_overrides_change_one_key_and_keep_the_rest() -> None:
    changes = ["behaviors.listening.strength=0.5", "behaviors.mode_awareness.enabled=true", "model=other"]
    profile = Profile.parse(GOOD, changes)
    assert profile.behaviors["listening"].strength == 0.5
    assert profile.behaviors["listening"].vector == "vector/listening:stable"
    assert profile.behaviors["mode_awareness"].enabled
    assert profile.model == "other"


def test_a_key_of_the_file_may_be_referred_to() -> None:
    a, b = "{vector: '${model}-a', strength: 1}", "{vector: v, strength: '${behaviors.a.strength}'}"
    profile = Profile.parse(f"model: demo\nbehaviors: {{a: {a}, b: {b}}}")
    assert profile.behaviors["a"].vector == "demo-a"
    assert profile.behaviors["b"].strength == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: demo", "model"),
        ("behaviors: {listening: {vector: v, strenght: 1}}", "strength"),
        ("behaviors: {listening: {vector: v, strength: much}}", "strength"),
        ("behaviors: {listening: {}}", "exactly one"),
        ("behaviors: {listening: {vector: v, task_vector: t}}", "exactly one"),
        ("behaviors: {listening: {vector: v, strength: .nan}}", "finite"),
        ("behaviors: {listening: {vector: v, strength: .inf}}", "finite"),
        (f"behaviors: {{listening: {{vector: v, strength: 1{'0' * 400}}}}}", "finite"),
        ("behaviors: {listening: {vector: v, layer: -1}}", "counted from 0"),
        (f"behaviors: {{listening: {{vector: v, layer: -0x{'f' * 5000}}}}}", "counted from 0"),
        ("behaviors: {listening: {vector: v, positions: some}}", "positions"),
        ("behaviors: {listening: {vector: v, operation: multiply}}", "operation"),
        ("behaviors: {listening: {vector: v, scale: 1}}", "'scale' goes with a task_vector"),
        ("behaviors: {listening: {task_vector: v, strength: 1}}", "'strength' goes with a vector"),
        ("behaviors: {Listening: {vector: v}}", "cannot name a behavior"),
        ("model: ${oc.env:HOME}", "resolver"),
        ("model: ${oc.env :HOME}", "resolver"),
        ("model: ${ oc.decode:x}", "resolver"),
        ('model: "\\x24{oc.env:HOME}"', "resolver"),
        ("behaviors: {a: {vector: '${${behaviors.b.vector}:HOME}'}, b: {vector: oc.env}}", "resolver"),
        ("model: '${model}${${model}:HOME}'", "resolver"),
        ("'${oc.env:HOME}': demo", "resolver"),
        ("model: ${nowhere}", "nowhere"),
        ("- a\n- b", "mapping"),
        ("model: [", "not YAML"),
        ("model: !!python/object/apply:os.system ['true']", "not YAML"),
        ("a: &a [*a]", "profile"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        Profile.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_resolver_in_an_override_is_refused() -> None:
    with pytest.raises(ProfileError, match="resolver"):
        Profile.parse(GOOD, ["model=${oc.env:HOME}"])
    with pytest.raises(ProfileError, match="resolver"):
        Profile.parse(GOOD, ['model="\\x24{oc.env:HOME}"'])


def test_an_unknown_key_in_an_override_is_refused() -> None:
    with pytest.raises(ProfileError, match="strength"):
        Profile.parse(GOOD, ["behaviors.listening.strenght=1"])


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.read(tmp_path / "none.yaml")


@example("0\n\n0")
@example('behaviors: {"a\\nb": {strength: 1}}')
@given(st.text(alphabet="behaviorsmdl:{}[]&*!$%@,'\"\n -#|>0123456789.", max_size=120))
def test_whatever_the_text_reading_gives_a_sound_profile_or_a_profile_error(text: str) -> None:
    said, entries = "", []
    try:
        entries = list(Profile.parse(text).behaviors.values())
    except ProfileError as error:
        said = str(error)
    assert "\n" not in said
    assert all(entry.strength is None or math.isfinite(entry.strength) for entry in entries)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_reading_gives_a_profile_or_a_profile_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "profile.yaml"
    path.write_bytes(data)
    said = ""
    try:
        Profile.read(path)
    except ProfileError as error:
        said = str(error)
    assert "\n" not in said
