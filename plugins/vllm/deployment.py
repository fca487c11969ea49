"""The task vectors of a running server: switched while requests wait, checked, and taken back when they fail."""

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engrain.core.errors import CheckError, EngrainError, IntegrityError
from engrain.core.fingerprint import Fingerprint
from engrain.core.profile import Entry
from engrain.plugins.vllm.admission import KEY
from engrain.plugins.vllm.served import ServedModel
from engrain.plugins.vllm.weights import WireEdit
from engrain.registry.reference import Reference, locate
from engrain.registry.served import note_served
from engrain.registry.store import Store
from engrain.registry.task_vectors import read_task_vector, resolve_task_vector

_LOG = logging.getLogger("engrain")
_HEALTH_PROMPT = "Say in one sentence what you can do."
# Requests wait for them.
_HEALTH_TOKENS = 4


def resolve_edits(store: Store, model: ServedModel, entries: Mapping[str, Entry]) -> list[WireEdit]:
    """Return what a profile puts on the weights, each reference pinned to a version.

    Raises:
        FingerprintError: a task vector that was made on another model.
        UnknownNameError: there is none of that name.
        InputError: a reference to something else than a task vector, or a folder that holds none.
    """
    found: list[WireEdit] = []
    for name, entry in entries.items():
        if entry.task_vector is None or not entry.enabled:
            continue
        scale = 1.0 if entry.scale is None else entry.scale
        place = locate(entry.task_vector, "task-vector")
        if isinstance(place, Path):
            base, where, digest = read_task_vector(store, entry.task_vector).fingerprint, entry.task_vector, None
        else:
            version = resolve_task_vector(store, place)
            base, where, digest = Fingerprint.from_json(version.config["base"]), version.reference, version.digest
        if model.fingerprint is not None:
            what = f"Task vector '{entry.task_vector}'"
            model.fingerprint.check_made_on(base, what, "Compile it again on this model.")
        found.append({"name": name, "where": where, "digest": digest, "scale": scale})
    return found


class Gate:
    """Holds requests back while the weights change."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._moved = asyncio.Condition()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Wait until it is open, and be inside as long as the context lasts."""
        async with self._moved:
            await self._moved.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            async with self._moved:
                self._inside -= 1
                self._moved.notify_all()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Let nobody in, and wait until nobody is inside; open again after the context."""
        try:
            async with self._moved:
                self._closed = True
                await self._moved.wait_for(lambda: self._inside == 0)
            yield
        finally:
            async with self._moved:
                self._closed = False
                self._moved.notify_all()


class GateMiddleware:
    """Has each request of an ASGI application pass a gate; looking at the state of engrain is always allowed."""

    def __init__(self, app: Any, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith("/v1/") or path.startswith("/v1/engrain/"):
            await self._app(scope, receive, send)
            return
        async with self._gate.passed():
            await self._app(scope, receive, send)


class Deployment:
    """The task vectors of a profile on a running engine; their aliases are followed.

    A switch drains the requests that run, holds back those that come, loads the weights, and asks a health prompt
    before anybody is let in. A version under which that prompt gives no finite answer, or that cannot be loaded, is
    taken off again; the weights that were on before then have to answer as they did, to the bit. Both are in the
    journal. Nothing is switched twice to what has failed.

    Args:
        engine: vLLM's asynchronous client.
        store: where the aliases are.
        model: what is served.
        entries: of the profile.
        gate: that requests pass.
    """

    def __init__(self, engine: Any, store: Store, model: ServedModel, entries: Mapping[str, Entry], gate: Gate) -> None:
        self._engine = engine
        self._store = store
        self._model = model
        self._entries = entries
        self._gate = gate
        self._on: list[WireEdit] = []
        self._answer = ""
        self._refused: list[WireEdit] | None = None
        self.problem: str | None = None

    async def start(self) -> None:
        """Learn what the workers loaded with, and how it answers."""
        self._on = (await self._engine.collective_rpc("engrain_edits"))[0]
        self._answer = await self._ask()

    def describe(self) -> dict[str, Any]:
        """Return what is on as JSON, and why what an alias points at is not."""
        return {
            "on": [{key: edit[key] for key in ("name", "where", "scale")} for edit in self._on],
            "problem": self.problem,
        }

    async def follow(self, interval: float = 1.0) -> None:
        """Look at the aliases every ``interval`` seconds, for ever."""
        while True:
            await asyncio.sleep(interval)
            said = self.problem
            try:
                await self.update()
            except EngrainError as error:
                self.problem = self.problem or str(error)
            except Exception:
                self.problem = "the switch failed; see the server's log"
                _LOG.exception("the weights could not be switched")
            if self.problem not in (None, said):
                _LOG.warning("the weights stay as they are: %s", self.problem)

    async def update(self) -> bool:
        """Switch to what the profile's references mean now; return whether anything was switched.

        Raises:
            CheckError: the new weights do not answer; those before are on.
            EngrainError: a task vector cannot be loaded; those before are on.
        """
        wanted = await asyncio.to_thread(resolve_edits, self._store, self._model, self._entries)
        if wanted == self._on:
            self._refused = self.problem = None
        if wanted in (self._on, self._refused):
            return False
        before, answer = self._on, self._answer
        async with self._gate.closed():
            try:
                await self._put_on(wanted)
                self._answer = await self._ask()
            except Exception as error:
                await self._put_on(before)
                self._refused, self.problem = wanted, f"it was taken back: {error}"
                await asyncio.to_thread(self._note, before, wanted, str(error))
                if await self._ask() != answer:
                    raise IntegrityError(
                        "The weights that were on before do not answer as they did; start the server again."
                    ) from error
                raise
        self._refused = self.problem = None
        await asyncio.to_thread(self._note, before, wanted, None)
        return True

    async def _put_on(self, edits: list[WireEdit]) -> None:
        await self._engine.pause_generation(mode="wait", clear_cache=True)
        try:
            await self._engine.collective_rpc("engrain_set_edits", args=(edits,))
            self._on = edits
        finally:
            await self._engine.resume_generation()

    async def _ask(self) -> str:
        """Return a digest of the answer to the health prompt: its tokens and log-probabilities.

        Raises:
            CheckError: there is no answer, or it is not finite.
        """
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=_HEALTH_TOKENS, logprobs=1, ignore_eos=True, extra_args={KEY: "none"}
        )
        last = None
        async for output in self._engine.generate(_HEALTH_PROMPT, params, request_id=f"engrain-health-{id(params)}"):
            last = output.outputs[0]
        steps = [] if last is None else [{token: one.logprob for token, one in step.items()} for step in last.logprobs]
        if len(steps) != _HEALTH_TOKENS or not all(math.isfinite(value) for step in steps for value in step.values()):
            raise CheckError("the health prompt gets no finite answer from these weights")
        return hashlib.sha256(json.dumps(steps).encode()).hexdigest()

    def _note(self, before: list[WireEdit], after: list[WireEdit], problem: str | None) -> None:
        """Write into the journal for each alias that moved."""
        versions = {edit["name"]: _number(edit) for edit in before}
        for edit in after:
            alias, number = locate(str(self._entries[edit["name"]].task_vector), "task-vector"), _number(edit)
            if not isinstance(alias, Reference) or alias.alias is None:
                continue
            # What an alias leads to has a number.
            if number is not None and number != versions.get(edit["name"]):
                note_served(self._store, alias, versions.get(edit["name"]), number, problem)


def _number(edit: WireEdit) -> int | None:
    return None if edit["digest"] is None else Reference.parse(str(edit["where"])).version
