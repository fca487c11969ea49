"""The front end's side: what each request asks for, resolved when it is admitted; and what it gets by default."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from engrain.core.composition import Active
from engrain.core.errors import EngrainError, InputError, LayerError, ProfileError, StrengthError, UnknownNameError
from engrain.core.number import finite
from engrain.core.positions import check_positions
from engrain.core.profile import Entry, Profile
from engrain.core.vector import SteeringVector
from engrain.plugins.vllm.combination import Combination
from engrain.registry.reference import Reference, locate, written_as_path
from engrain.registry.store import Store
from engrain.registry.vectors import parse_steering, read_vector

KEY = "engrain"
POSITIONS = "engrain_positions"
_KEYS = (KEY, POSITIONS)
_MOST_CHARACTERS = 16_384
_MOST_VECTORS = 64
_REMEMBERED = 256
_LONGEST_REFUSAL = 600
# Hidden states of large models reach some thousands; beyond that float16 overflows, and one request's NaN is of no use.
_LONGEST_SHIFT = 10_000.0
_MOST_STRENGTH = 1_000.0

Activate = Callable[[SteeringVector, Entry], Active]


class Admission:
    """What requests get.

    A request says in its extra arguments (``vllm_xargs`` over HTTP)

    * ``engrain``: a set of active behaviors, ``listening=1.2,not_rushing=0.6`` (each a behavior of the server's
      profile, or a reference to a vector); a published profile, ``profile/NAME``; the ``behaviors`` of a profile as a
      JSON object; or ``none``;
    * ``engrain_positions``: all, prompt, generated or from:N, instead of what the vectors were calibrated with.

    Without ``engrain`` it gets the default: the server's profile, as changed while it runs. References are resolved
    now; a request keeps what it was admitted with.

    Args:
        profile: what the server starts with.
        store: where references are resolved.
        activate: gives a vector in use on the served model, or refuses it.
        layers: the decoder blocks that are armed.
    """

    def __init__(self, profile: Profile, store: Store, activate: Activate, layers: Sequence[int]) -> None:
        self._store = store
        self._activate = activate
        self._layers = frozenset(layers)
        self._lock = threading.Lock()
        self._vectors: OrderedDict[str, SteeringVector] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], Combination] = OrderedDict()
        self._entries = dict(profile.behaviors)
        self._gain = 1.0
        self._default = self._resolve_default(self._entries, self._gain)

    def admit(self, arguments: Mapping[str, Any] | None) -> Combination | None:
        """Return what a request is steered by, or None for nothing.

        Raises:
            InputError: the arguments do not say it in a way that can be followed; nothing is ever ignored.
        """
        arguments = arguments or {}
        for key in arguments:
            if isinstance(key, str) and key.startswith(KEY) and key not in _KEYS:
                raise UnknownNameError("argument", key[:64], _KEYS)
        combination = self._default
        if KEY in arguments or POSITIONS in arguments:
            combination = self._asked(arguments.get(KEY), arguments.get(POSITIONS))
        return combination

    def describe(self) -> dict[str, Any]:
        """Return the default as JSON: its gain, and each behavior of the profile with what it is set to."""
        with self._lock:
            behaviors = {
                name: {key: value for key, value in vars(entry).items() if value is not None}
                for name, entry in self._entries.items()
            }
            return {"gain": self._gain, "behaviors": behaviors}

    def active(self) -> dict[str, Any]:
        """Return as JSON what is on by default: vectors, layers, strengths with the gain in them, and the digest."""
        with self._lock:
            default = self._default
        return {
            "digest": None if default is None else default.digest,
            "vectors": {} if default is None else {name: one.to_json() for name, one in default.actives.items()},
        }

    def change(self, change: Any) -> dict[str, Any]:
        """Change the default for requests to come; nothing of it when a part cannot be followed.

        Args:
            change: ``{"gain": number, "behaviors": {NAME: {"enabled": bool, "strength": number}}, "profile":
                "profile/NAME"}``, each of them optional; a profile replaces the behaviors before they are changed.

        Returns:
            As ``describe``.

        Raises:
            InputError: an unknown key or behavior, a value of the wrong type, a layer that is not armed.
        """
        if not isinstance(change, dict):
            raise InputError("The body must be an object with some of the keys behaviors, gain, profile.")
        _check_keys(change, ("behaviors", "gain", "profile"), "key")
        with self._lock:
            entries, gain = dict(self._entries), self._gain
        if "profile" in change:
            entries = self._published(change["profile"]).behaviors
        if "gain" in change:
            gain = _number(change["gain"], "gain")
        behaviors = change.get("behaviors", {})
        if not isinstance(behaviors, dict):
            raise InputError("'behaviors' must be an object of behaviors of the profile.")
        for name, fields in behaviors.items():
            if name not in entries:
                raise UnknownNameError("behavior of the profile", name[:64], entries)
            entries[name] = _changed(name, entries[name], fields)
        default = self._resolve_default(entries, gain)
        with self._lock:
            self._entries, self._gain, self._default = entries, gain, default
        return self.describe()

    def _resolve_default(self, entries: Mapping[str, Entry], gain: float) -> Combination | None:
        actives = {name: self._active(entry) for name, entry in entries.items() if entry.vector and entry.enabled}
        return self._checked({name: replace(one, strength=one.strength * gain) for name, one in actives.items()})

    def _asked(self, spec: Any, positions: Any) -> Combination | None:
        if not (positions is None or isinstance(positions, str)):
            raise InputError(f"'{POSITIONS}' is {_short(positions)}; write all, prompt, generated or from:N.")
        if positions is not None:
            check_positions(positions)
        if spec is None:
            actives = dict(self._default.actives) if self._default is not None else {}
            return self._checked(_placed(actives, positions))
        text = spec if isinstance(spec, str) else _as_json(spec)
        if len(text) > _MOST_CHARACTERS:
            raise InputError(f"'{KEY}' has {len(text)} characters; at most {_MOST_CHARACTERS} are read.")
        text = text.strip()
        if text == "none":
            return None
        actives = self._read(text)
        combination = self._checked(_placed(actives, positions))
        if combination is None:
            return None
        # The same combination again is the same object: its digest and its bytes are made once.
        with self._lock:
            known = self._known.setdefault((combination.names, combination.digest), combination)
            self._known.move_to_end((combination.names, combination.digest))
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known

    def _read(self, text: str) -> dict[str, Active]:
        if text.startswith("{"):
            return self._read_profile(_parse(text), KEY)
        if text.startswith("profile/"):
            return self._read_profile(self._published(text), text)
        items = parse_steering(text)
        if len(items) > _MOST_VECTORS:
            raise InputError(f"'{KEY}' names {len(items)} vectors; at most {_MOST_VECTORS} are composed.")
        found: dict[str, Active] = {}
        for where, strength in items:
            if where in found:
                raise InputError(f"'{where}' is named twice in '{KEY}'; once, with one strength, is meant.")
            entry = self._entries.get(where)
            if entry is None or entry.vector is None:
                entry = Entry(vector=str(_vector_reference(where)))
            found[where] = self._active(entry if strength is None else replace(entry, strength=strength))
        return found

    def _read_profile(self, profile: Profile, source: str) -> dict[str, Active]:
        if len(profile.behaviors) > _MOST_VECTORS:
            raise InputError(f"{source}: {len(profile.behaviors)} behaviors; at most {_MOST_VECTORS} are composed.")
        for name, entry in profile.enabled.items():
            if entry.task_vector is not None:
                raise ProfileError(
                    f"{source}: behaviors.{name}: a task vector changes the weights, which requests share; serve it "
                    f"with the server's profile, or export it as a LoRA adapter and name that as the model."
                )
        # With its kind, a name is never that of a file beside the server.
        named = {name: str(_vector_reference(str(entry.vector))) for name, entry in profile.enabled.items()}
        # Each vector is looked up once, however many of the behaviors use it.
        vectors = {where: self._vector(where) for where in set(named.values())}
        return {name: self._activate(vectors[named[name]], entry) for name, entry in profile.enabled.items()}

    def _published(self, reference: Any) -> Profile:
        if not isinstance(reference, str):
            raise InputError(f"'profile' is {_short(reference)}; name a published one, as profile/pair-programming.")
        version = self._store.resolve(Reference.parse(reference, "profile"))
        if version.kind != "profile":
            raise InputError(f"'{reference}' is a {version.kind}, a profile is needed.")
        behaviors = json.dumps({"behaviors": version.config["behaviors"]})
        return Profile.parse(behaviors, source=version.reference, references=False)

    def _active(self, entry: Entry) -> Active:
        return self._activate(self._vector(str(entry.vector)), entry)

    def _vector(self, where: str) -> SteeringVector:
        """Return a vector of the registry, or of a file that the server's own profile names."""
        place = locate(where, "vector")
        if isinstance(place, Path):
            return read_vector(self._store, where)
        key = self._store.resolve(place).digest
        with self._lock:
            vector = self._vectors.get(key)
        if vector is None:
            vector = read_vector(self._store, where)
            with self._lock:
                self._vectors[key] = vector
                if len(self._vectors) > _REMEMBERED:
                    self._vectors.popitem(last=False)
        return vector

    def _checked(self, actives: Mapping[str, Active]) -> Combination | None:
        for name, active in actives.items():
            longest = max(active.vector.at(layer).norm().item() for layer in active.layers) * abs(active.strength)
            if abs(active.strength) > _MOST_STRENGTH or longest > _LONGEST_SHIFT:
                raise StrengthError(
                    f"The strength {active.strength:g} of '{name}' is out of all proportion (a change of length "
                    f"{longest:.3g}); at most {_MOST_STRENGTH:g} and a length of {_LONGEST_SHIFT:g} are taken."
                )
        combination = Combination.of(actives)
        if combination is not None and (missing := combination.layers - self._layers):
            armed = ", ".join(map(str, sorted(self._layers))) or "none"
            raise LayerError(
                f"Layer {min(missing)} is not armed on this server (armed: {armed}); "
                f"start it with --layers {','.join(map(str, sorted(self._layers | missing)))}, or with --layers all."
            )
        return combination


def refusal(error: EngrainError) -> str:
    """Return what to tell whoever sent it: one line, however long and unprintable what they sent is."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(error))
    return (
        text
        if len(text) <= _LONGEST_REFUSAL
        else f"{text[: _LONGEST_REFUSAL // 2]} ... {text[-_LONGEST_REFUSAL // 2 :]}"
    )


def _vector_reference(where: str) -> Reference:
    """Return the reference to a vector; the path of a file is none."""
    if written_as_path(where):
        raise InputError(
            f"'{where[:80]}' is a file; requests name vectors of the registry: engrain import FILE --name NAME."
        )
    reference = Reference.parse(where, "vector")
    if reference.kind != "vector":
        raise InputError(f"'{where}' is a {reference.kind}; requests are steered by vectors and profiles.")
    return reference


def _placed(actives: Mapping[str, Active], positions: str | None) -> dict[str, Active]:
    if positions is None:
        return dict(actives)
    return {name: replace(active, positions=positions) for name, active in actives.items()}


@lru_cache(_REMEMBERED)
def _parse(text: str) -> Profile:
    """Return the JSON of a request as a profile of these behaviors; kept, since reading one takes milliseconds."""
    try:
        behaviors = json.dumps({"behaviors": json.loads(text)})
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{KEY}' starts as JSON but is not: {error}") from error
    return Profile.parse(behaviors, source=KEY, references=False)


def _as_json(spec: Any) -> str:
    if not isinstance(spec, dict):
        raise InputError(
            f"'{KEY}' is {_short(spec)}; write 'listening=1.2,not_rushing=0.6', 'profile/NAME', "
            f"a JSON object, or 'none'."
        )
    try:
        return json.dumps(spec)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"'{KEY}' cannot be written as JSON ({error}).") from error


def _changed(name: str, entry: Entry, fields: Any) -> Entry:
    if not isinstance(fields, dict):
        raise InputError(f"'behaviors.{name[:64]}' must be an object with some of the keys enabled, strength.")
    _check_keys(fields, ("enabled", "strength"), f"key of behaviors.{name}")
    if not isinstance(fields.get("enabled", True), bool):
        raise InputError(f"'behaviors.{name}.enabled' is {_short(fields['enabled'])}; it must be true or false.")
    if entry.vector is None:
        raise InputError(f"'{name}' is a task vector, on the weights; it cannot be changed while the server runs.")
    if "strength" in fields:
        entry = replace(entry, strength=_number(fields["strength"], f"behaviors.{name}.strength"))
    return replace(entry, enabled=fields.get("enabled", entry.enabled))


def _check_keys(fields: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for key in fields:
        if key not in known:
            raise UnknownNameError(what, key[:64], known)


def _number(value: Any, what: str) -> float:
    if not finite(value):
        raise InputError(f"'{what}' is {_short(value)}; it must be a finite number.")
    return float(value)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
