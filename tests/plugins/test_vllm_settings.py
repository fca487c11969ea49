"""The plugin's settings, and what it asks of vLLM before it steers anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.core.errors import InputError
from engrain.plugins.vllm.compatibility import PatchPoint
from engrain.plugins.vllm.settings import VARIABLE, Settings


@given(st.none() | st.text(), st.lists(st.text()), st.none() | st.lists(st.integers()))
def test_settings_read_what_they_wrote(profile: str | None, overrides: list[str], layers: list[int] | None) -> None:
    written = Settings(profile, tuple(overrides), None if layers is None else tuple(layers))
    assert Settings.from_environment({VARIABLE: written.to_json()}) == written


@pytest.mark.parametrize("environment", [{}, {VARIABLE: ""}])
def test_nothing_is_done_until_it_is_asked_for(environment: dict[str, str]) -> None:
    assert Settings.from_environment(environment) is None


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "1",
        '{"profil": "x"}',
        '{"profile": 1}',
        '{"layers": "all"}',
        '{"layers": [1.5]}',
        '{"overrides": "x"}',
    ],
)
def test_broken_settings_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=VARIABLE):
        Settings.from_environment({VARIABLE: text})


def test_a_place_that_is_as_known_passes() -> None:
    PatchPoint("json", "JSONDecoder.decode", ("self", "s")).check()
    PatchPoint("json", "loads", ("s",)).check()


@pytest.mark.parametrize(
    ("point", "named"),
    [
        (PatchPoint("json.nowhere", "loads", ()), "json.nowhere.loads"),
        (PatchPoint("json", "lodas", ()), "json.lodas"),
        (PatchPoint("json", "Decoder.decode", ()), "json.Decoder.decode"),
        (PatchPoint("json", "loads", ("s", "strict_mode")), "takes no strict_mode"),
    ],
)
def test_a_place_that_has_changed_is_named(point: PatchPoint, named: str) -> None:
    with pytest.raises(InputError, match=named):
        point.check()
