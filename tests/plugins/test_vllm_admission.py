"""What requests and operators may ask for, and how everything else is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from combinations import WIDTH, vector
from engrain.core.errors import InputError, LayerError, StrengthError, UnknownNameError
from engrain.core.profile import Profile
from engrain.core.vector import Calibration
from engrain.plugins.vllm.admission import Admission, refusal
from engrain.plugins.vllm.served import ServedModel
from engrain.registry.profiles import publish_profile
from engrain.registry.store import Store
from engrain.registry.vectors import publish_vector

PROFILE = """
behaviors:
  listening: {vector: vector/listening@1, strength: 1.5}
  slow:      {vector: vector/not_rushing, enabled: false}
"""
MODEL = ServedModel("tiny", 3, WIDTH, "LlamaForCausalLM", None)


def open_admission(root: Path, profile: str = PROFILE, layers: tuple[int, ...] = (0, 2)) -> Admission:
    store = Store(root)
    if not store.names("vector"):
        for seed, name in enumerate(("listening", "not_rushing")):
            publish_vector(store, name, vector(seed, name).calibrated(Calibration(2, 2.0 + seed)))
        publish_profile(store, "calm", Profile.parse(PROFILE.replace("enabled: false", "strength: 0.25")))
    return Admission(Profile.parse(profile), store, MODEL.activate, layers)


@pytest.fixture
def admission(tmp_path: Path) -> Admission:
    return open_admission(tmp_path / "home")


def doses(admission: Admission, arguments: dict[str, Any] | None) -> dict[str, float]:
    found = admission.admit(arguments)
    return {} if found is None else {one.vector.name: one.strength for one in found.actives.values()}


def test_a_request_that_says_nothing_gets_the_profile(admission: Admission) -> None:
    assert doses(admission, None) == doses(admission, {"unrelated": 1}) == {"listening0": 1.5}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("none", {}),
        (" none ", {}),
        ("listening", {"listening0": 1.5}),  # of the profile, not the vector's own dose
        ("slow", {"not_rushing1": 3.0}),  # asked for, although off by default; its calibration's dose
        ("vector/listening", {"listening0": 2.0}),
        ("not_rushing=0.6,listening=-1", {"not_rushing1": 0.6, "listening0": -1.0}),
        ("listening=0", {}),
        ("profile/calm", {"listening0": 1.5, "not_rushing1": 0.25}),
        ('{"x": {"vector": "not_rushing", "layer": 0, "strength": 2}}', {"not_rushing1": 2.0}),
        ({"x": {"vector": "vector/not_rushing@1"}}, {"not_rushing1": 3.0}),
        ("{}", {}),
    ],
)
def test_a_request_gets_what_it_asks_for(admission: Admission, spec: Any, wanted: dict[str, float]) -> None:
    assert doses(admission, {"engrain": spec}) == wanted


def test_positions_are_those_of_the_request(admission: Admission) -> None:
    for arguments in ({"engrain_positions": "generated"}, {"engrain": "listening", "engrain_positions": "generated"}):
        found = admission.admit(arguments)
        assert found is not None
        assert [one.positions for one in found.actives.values()] == ["generated"]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "listenin",
        "listening=",
        "listening=nan",
        "listening=1e999",
        "listening=1e30",
        "listening,listening",
        "task-vector/listening",
        "profile/none",
        "/etc/passwd",
        "../listening.safetensors",
        "listening.safetensors",
        "~/listening",
        "listening.pt",
        "{",
        '{"x": 1}',
        '{"x": {"vector": "listening", "strenght": 1}}',
        '{"x": {"vector": "/etc/passwd"}}',
        '{"x": {"task_vector": "listening"}}',
        '{"x": {"vector": "${oc.env:HOME}"}}',
        '{"x": {"vector": "listening", "layer": 99}}',
        '{"x": {"vector": "listening", "strength": NaN}}',
        f'{{"x": {{"vector": "listening", "strength": 1{"0" * 400}}}}}',
        "[" * 5000,
        "{" * 5000,
        '{"x":' * 3000 + "1" + "}" * 3000,
        "listening=1," * 10_000,
        3,
        True,
        ["listening"],
        b"listening",
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(admission: Admission, spec: Any) -> None:
    with pytest.raises(InputError) as refused:
        admission.admit({"engrain": spec})
    message = refusal(refused.value)
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize(
    "spec",
    [
        {"a": {"vector": "${${behaviors.b.vector}:ENGRAIN_SECRET}"}, "b": {"vector": "oc.env", "enabled": False}},
        '{"a": {"vector": "\\u0024{oc.env:ENGRAIN_SECRET}"}}',
        {"a": {"vector": "${behaviors.b.vector}"}, "b": {"vector": "listening"}},
    ],
)
def test_a_request_cannot_refer_to_anything_and_learns_nothing_of_the_environment(
    admission: Admission, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGRAIN_SECRET", "hidden")
    with pytest.raises(InputError, match="write the value itself") as refused:
        admission.admit({"engrain": spec})
    assert "hidden" not in str(refused.value)


def test_no_request_reads_a_file_that_lies_beside_the_server(
    admission: Admission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not_rushing").write_bytes(b"no vector")
    for spec in ("not_rushing", {"x": {"vector": "not_rushing"}}):
        assert doses(admission, {"engrain": spec}) == {"not_rushing1": 3.0}


def test_a_mistyped_argument_is_refused_and_not_ignored(admission: Admission) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'engrain_positions'"):
        admission.admit({"engrain_position": "generated"})
    with pytest.raises(InputError, match="positions"):
        admission.admit({"engrain": "none", "engrain_positions": "generatd"})


@pytest.mark.parametrize("start", ["9" * 10, "9" * 20, "9" * 5000])
def test_a_first_token_past_every_context_is_refused_and_not_left_to_the_worker(
    admission: Admission, start: str
) -> None:
    for arguments in (
        {"engrain": "listening", "engrain_positions": f"from:{start}"},
        {"engrain": {"x": {"vector": "listening", "positions": f"from:{start}"}}},
    ):
        with pytest.raises(InputError, match="at most 9 digits"):
            admission.admit(arguments)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["vector", "strength", "layer", "positions", "enabled", "é"]) | st.text(), inner
        )
    ),
    max_leaves=12,
)
near_misses = st.lists(
    st.sampled_from(
        [
            "listening",
            "slow",
            "vector/",
            "profile/",
            "=",
            ",",
            "1",
            "-",
            "nan",
            "@1",
            ":",
            "\0",
            "\n",
            "{",
            "}",
            '"x":',
            "é",
        ]
    )
).map("".join)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Admission:
    return open_admission(tmp_path_factory.mktemp("admission"))


@settings(max_examples=400)
@given(
    spec=json_values | near_misses | json_values.map(lambda value: json.dumps(value, default=repr)),
    positions=json_values,
)
def test_whatever_is_sent_is_followed_or_refused(shared: Admission, spec: Any, positions: Any) -> None:
    for arguments in ({"engrain": spec}, {"engrain": "listening", "engrain_positions": positions}):
        message = ""
        found = None
        try:
            found = shared.admit(arguments)
        except InputError as refused:
            message = refusal(refused)
        assert message.isprintable()
        assert found is None or found.layers <= {0, 2}


def test_a_layer_that_is_not_armed_is_refused_with_the_flag_that_arms_it(tmp_path: Path) -> None:
    admission = open_admission(tmp_path / "home", layers=(2,))
    with pytest.raises(LayerError, match="--layers 0,2"):
        admission.admit({"engrain": {"x": {"vector": "listening", "layer": 0, "strength": 1}}})


def test_a_request_keeps_what_it_was_admitted_with(tmp_path: Path) -> None:
    admission = open_admission(tmp_path / "home")
    before = admission.admit({"engrain": "vector/not_rushing"})
    publish_vector(Store(tmp_path / "home"), "not_rushing", vector(9).calibrated(Calibration(0, 1.0)))
    after = admission.admit({"engrain": "vector/not_rushing"})
    assert before is not None
    assert after is not None
    assert before.digest != after.digest
    assert [one.vector.name for one in before.actives.values()] == ["not_rushing1"]


def test_the_same_combination_is_made_once(admission: Admission) -> None:
    one, other = admission.admit({"engrain": "listening=2"}), admission.admit({"engrain": "vector/listening=2"})
    assert one is other


def test_the_default_changes_while_the_server_runs(admission: Admission) -> None:
    admission.change({"gain": 0.5, "behaviors": {"slow": {"enabled": True, "strength": 1.0}}})
    assert doses(admission, None) == {"listening0": 0.75, "not_rushing1": 0.5}
    assert admission.active()["vectors"]["slow"]["strength"] == 0.5
    admission.change({"behaviors": {"listening": {"enabled": False}, "slow": {"enabled": False}}})
    assert doses(admission, None) == {}
    admission.change({"profile": "profile/calm", "gain": 1})
    assert doses(admission, None) == {"listening0": 1.5, "not_rushing1": 0.25}


@pytest.mark.parametrize(
    "change",
    [
        None,
        [],
        {"gains": 1},
        {"gain": "1"},
        {"gain": float("nan")},
        {"gain": 10**400},
        {"behaviors": {"listenin": {}}},
        {"behaviors": {"listening": {"strength": True}}},
        {"behaviors": {"listening": {"vector": "vector/x"}}},
        {"behaviors": []},
        {"profile": "/etc/passwd"},
        {"profile": "vector/listening"},
        {"profile": None},
    ],
)
def test_a_change_that_cannot_be_followed_changes_nothing(admission: Admission, change: Any) -> None:
    before = admission.describe()
    with pytest.raises(InputError):
        admission.change(change)
    with pytest.raises(InputError):
        admission.change({"gain": 0.5, "behaviors": {"listening": {"enabled": False}}} | (change or {"x": 1}))
    assert admission.describe() == before


def test_a_profile_that_cannot_be_followed_stops_the_start(tmp_path: Path) -> None:
    open_admission(tmp_path / "home")
    with pytest.raises(StrengthError):
        open_admission(tmp_path / "home", PROFILE.replace("1.5", "1e8"))
    with pytest.raises(UnknownNameError):
        open_admission(tmp_path / "home", PROFILE.replace("listening@1", "listenin"))


def test_a_gain_out_of_all_proportion_is_refused(admission: Admission) -> None:
    with pytest.raises(StrengthError, match="out of all proportion"):
        admission.change({"gain": 1e9})
    assert doses(admission, None) == {"listening0": 1.5}
