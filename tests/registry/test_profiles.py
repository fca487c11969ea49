"""Profiles in the registry: what an alias in one meant stays known."""

import pytest

from brevity import CANARY, moves
from engrain.core.errors import ProfileError
from engrain.core.profile import Profile
from engrain.registry.lineage import Lineage
from engrain.registry.profiles import publish_profile
from engrain.registry.store import Store

TEXT = """
model: demo
behaviors:
  short: {vector: "vector/brevity:canary", strength: 1.2}
  newest: {vector: brevity, enabled: false}
"""


def test_a_profile_records_what_its_references_meant_and_keeps_it(store: Store) -> None:
    moves(store, 2)
    version = publish_profile(store, "pairing", Profile.parse(TEXT))
    moves(store, 3)
    two, five = (store.resolve(f"vector/brevity@{number}") for number in (2, 5))
    assert store.resolve("profile/pairing").config == {
        "schema": "engrain.profile/1",
        "model": "demo",
        "behaviors": {
            "short": {"vector": "vector/brevity@2", "strength": 1.2, "enabled": True},
            "newest": {"vector": "vector/brevity@5", "enabled": False},
        },
        "resolved": {
            "short": {"asked": str(CANARY), "reference": "vector/brevity@2", "digest": two.digest},
            "newest": {"asked": "brevity", "reference": "vector/brevity@5", "digest": five.digest},
        },
    }
    assert {parent.digest for parent in version.parents} == {two.digest, five.digest}
    assert {node.references[0] for node in Lineage(store).descendants(two).below} == {"profile/pairing@1"}
    assert publish_profile(store, "pairing", Profile.parse(TEXT)).number == 2


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("./brevity.safetensors", "behaviors.short: .* engrain import"),
        ("vector/brvity", "Did you mean 'brevity'"),
        ("verdict/brevity", "is a verdict; name a vector"),
    ],
)
def test_what_is_not_in_the_registry_is_refused_by_its_place_in_the_profile(
    store: Store, where: str, message: str
) -> None:
    store.publish("verdict", "brevity", config={}, files={})
    text = TEXT.replace("vector/brevity:canary", where)
    with pytest.raises(ProfileError, match=message):
        publish_profile(store, "pairing", Profile.parse(text))
    assert store.names("profile") == []
