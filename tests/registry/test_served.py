"""What servers say in the journal."""

from engrain.registry.alias import move_alias
from engrain.registry.journal import read_chain
from engrain.registry.log import read_log
from engrain.registry.reference import Reference
from engrain.registry.served import note_served
from engrain.registry.store import Store

ALIAS = Reference.parse("vector/brevity:live")


def said(store: Store, reference: str) -> list[str]:
    entries = read_log(read_chain(store.root / "journal"), Reference.parse(reference))
    return [entry.what for entry in entries if entry.event.act == "serve"]


def test_a_switch_and_one_that_was_taken_back_are_in_the_log_of_what_they_concern(store: Store) -> None:
    move_alias(store, ALIAS, 2)
    note_served(store, ALIAS, None, 2)
    note_served(store, ALIAS, 2, 3, "it gave no answer")
    switched, back = (
        "vector/brevity:live  nothing -> @2",
        "vector/brevity:live  @2 -> @3; it went back: it gave no answer",
    )
    assert said(store, "vector/brevity:live") == said(store, "vector/brevity") == [back, switched]
    assert said(store, "vector/brevity@3") == [back]
    assert said(store, "vector/brevity@2") == [back, switched]
    assert said(store, "vector/brevity:other") == said(store, "vector/brevity@5") == said(store, "vector/other") == []


def test_a_note_moves_nothing(store: Store) -> None:
    move_alias(store, ALIAS, 2)
    note_served(store, ALIAS, 2, 3, "it gave no answer")
    assert store.resolve(ALIAS).number == 2
