"""The registry under faults: processes killed at every step of a write, and bytes changed anywhere.

python -m benchmarks.registry_faults kill --count 1000
python -m benchmarks.registry_faults flip --count 10000

`kill` forks a child for every system call with a lasting effect (and, where it writes, once more halfway through),
kills it there with SIGKILL, opens the registry again and checks it: nothing that was there is lost, the interrupted act
took place or did not, `verify` is clean, and the next act works. `flip` changes one byte of one file, or cuts it, or
zeroes it: `verify` has to say so, not to fail, and to leave everything else as readable as before.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import write
from engrain.core.errors import EngrainError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.collect import collect
from engrain.registry.delete import delete
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Parent, Store, Version

STEPS = ("mkdir", "fsync", "chmod", "replace", "write", "ftruncate", "unlink")
STABLE = Reference("vector", "brevity", alias="stable")


def publish(store: Store, text: str, kind: str = "vector", *parents: Parent) -> Version:
    """Publish a version that is told by its text."""
    files = {"x.bin": text.encode()} if kind == "vector" else {}
    return store.publish(kind, "brevity", config={"text": text, "passed": True}, files=files, parents=parents)


def build(root: Path) -> Store:
    """Make a registry with versions, verdicts, an alias that was moved and rolled back, and a deleted version."""
    store = Store(root)
    pairs = publish(store, "pairs", "dataset")
    for number in range(1, 5):
        version = publish(store, f"text {number}", "vector", Parent("pairs", pairs.digest))
        publish(store, f"verdict {number}", "verdict", Parent("vector", version.digest))
    for number in (1, 2, 4):
        move_alias(store, STABLE, number, reason="better")
    roll_back(store, STABLE, reason="worse")
    delete(store, Reference("vector", "brevity", 3), "not needed")
    return store


def publish_next(store: Store) -> None:
    """Publish one more."""
    publish(store, "text 5")


def move_next(store: Store) -> None:
    """Move the alias on."""
    move_alias(store, STABLE, 4, expect=2)


def back_next(store: Store) -> None:
    """Roll the alias back."""
    roll_back(store, STABLE)


def delete_next(store: Store) -> None:
    """Delete a version."""
    delete(store, Reference("vector", "brevity", 4), "not needed either")


def collect_next(store: Store) -> None:
    """Remove what nothing needs."""
    collect(store, grace=0, dry_run=False)


ACTS: dict[str, Callable[[Store], None]] = {
    "publish": publish_next,
    "alias": move_next,
    "rollback": back_next,
    "delete": delete_next,
    "gc": collect_next,
}


def kill_at(step: int, when: str) -> None:
    """Have this process killed at its ``step``-th system call with a lasting effect, before it or halfway through."""
    calls = itertools.count(1)

    def wrap(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            if next(calls) == step:
                if when == "half" and name == "write":
                    handle, raw = arguments
                    assert isinstance(raw, bytes)
                    real(handle, raw[: len(raw) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    for name in STEPS:
        setattr(os, name, wrap(name, getattr(os, name)))


def state(store: Store) -> dict[str, object]:
    """Return all that a reader sees."""
    texts = {version.reference: version.config["text"] for version in store.versions("vector", "brevity")}
    files = {version.reference: version.path("x.bin").read_text() for version in store.versions("vector", "brevity")}
    verdicts = [version.config["text"] for version in store.versions("verdict", "brevity")]
    return {"texts": texts, "files": files, "verdicts": verdicts, "stable": store.resolve(STABLE).number}


def kills(count: int, folder: Path) -> Iterator[str]:
    """Kill ``count`` children; yield what went wrong."""
    base = build(folder / "base")
    before = state(base)
    # In the order of chance: a short run hits all kinds of steps too.
    plan = [(act, step, when) for act in ACTS for step, when in steps(base, act, folder)]
    random.Random(0).shuffle(plan)
    for number, (act, step, when) in enumerate(itertools.islice(itertools.cycle(plan), count)):
        root = folder / f"{number}"
        shutil.copytree(base.root, root)
        child = os.fork()
        if child == 0:
            try:
                kill_at(step, when)
                ACTS[act](Store(root))
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            yield f"{act}, step {step}: was not killed"
        try:
            yield from (f"{act}, step {step} {when}: {problem}" for problem in reopen(Store(root), act, before))
        except Exception as error:
            yield f"{act}, step {step} {when}: {type(error).__name__}: {error}"


def steps(base: Store, act: str, folder: Path) -> list[tuple[int, str]]:
    """Return the steps that an act has."""
    root = folder / f"count-{act}"
    shutil.copytree(base.root, root)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        done: list[str] = []
        real = os.write
        for name in STEPS:
            setattr(os, name, _counted(name, getattr(os, name), done))
        ACTS[act](Store(root))
        real(writer, json.dumps(done).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        names: list[str] = json.loads(stream.read())
    os.waitpid(child, 0)
    found = [(step, "before") for step in range(1, len(names) + 1)]
    return found + [(step, "half") for step, name in enumerate(names, 1) if name == "write"]


def _counted(name: str, real: Callable[..., object], done: list[str]) -> Callable[..., object]:
    def call(*arguments: object, **more: object) -> object:
        done.append(name)
        return real(*arguments, **more)

    return call


def reopen(store: Store, act: str, before: dict[str, object]) -> Iterator[str]:
    """Check a registry after a kill, before and after the next writer came."""
    after = {**before}
    texts, files = dict(before["texts"]), dict(before["files"])  # type: ignore[call-overload]
    if act == "publish":
        after |= {
            "texts": texts | {"vector/brevity@5": "text 5"},
            "files": files | {"vector/brevity@5": "text 5"},
        }
    elif act == "delete":
        del texts["vector/brevity@4"], files["vector/brevity@4"]
        after |= {"texts": texts, "files": files}
    elif act in ("alias", "rollback"):
        after["stable"] = 4 if act == "alias" else 1
    found = state(store)
    if found not in (before, after):
        yield f"neither before nor after: {found}"
    twin = Store(store.root.with_name(f"{store.root.name}-twin"))
    shutil.copytree(store.root, twin.root)
    stable = found["stable"]
    if stable != 1 and roll_back(twin, STABLE).after.number != {4: 2, 2: 1}[int(str(stable))]:
        yield "the roll back after it goes elsewhere"
    version = publish(store, "next")
    if version.number != (6 if found != before and act == "publish" else 5):
        yield f"the next number is {version.number}"
    report = audit(store)
    if not report.passed:
        yield f"verify says {[str(problem) for problem in report.problems]}"
    if {**state(store), "texts": found["texts"], "files": found["files"]} != found:
        yield "the next writer changed what a reader saw"
    ACTS["gc"](store)
    move_alias(store, STABLE, version.number, force=True, reason="test")
    roll_back(store, STABLE)
    if state(store)["stable"] != found["stable"] or not audit(store).passed:
        yield "the next moves do not work"


def flips(count: int, folder: Path, seed: int = 0) -> Iterator[str]:
    """Damage one file ``count`` times; yield what went wrong."""
    chance = random.Random(seed)
    base = build(folder / "base")
    rubbish = ("tmp", "locks", "leases")
    paths = sorted(path for path in base.root.rglob("*") if path.is_file() and path.parts[-2] not in rubbish)
    pristine = {path: path.read_bytes() for path in paths}
    kinds = ("dataset", "vector", "verdict")
    versions = [version.reference for kind in kinds for version in base.versions(kind, "brevity")]
    for number in range(count):
        path = paths[number % len(paths)]
        raw = pristine[path]
        how = chance.choice(("flip", "flip", "cut", "zero"))
        place = chance.randrange(len(raw))
        if how == "flip":
            damaged = raw[:place] + bytes([raw[place] ^ (1 << chance.randrange(8))]) + raw[place + 1 :]
        else:
            damaged = raw[:place] if how == "cut" else bytes(len(raw))
        what = f"{path.relative_to(base.root)}, {how} at {place}"
        path.chmod(0o644)
        path.write_bytes(damaged)
        try:
            report = audit(base, keep=True)
            if report.passed:
                yield f"{what}: not detected"
            readable = sum(_reads(base, reference) for reference in versions)
            # One file is at most one object of two versions, or one line of a name.
            if path.name != "registry.json" and readable < len(versions) - 4:
                yield f"{what}: only {readable} of {len(versions)} versions can be read"
        except Exception as error:
            yield f"{what}: {type(error).__name__}: {error}"
        path.write_bytes(raw)
    if not audit(base).passed:
        yield "not clean in the end"


def _reads(store: Store, reference: str) -> bool:
    try:
        _ = store.resolve(reference).config
    except EngrainError:
        return False
    return True


def main() -> None:
    """Inject, print, and exit with 1 when anything was lost or missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "flip"))
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--dry", action="store_true", help="Do not write the result.")
    options = parser.parse_args()
    # A killed process loses nothing that the system has; only a power cut would, and that cannot be done here.
    os.fsync = lambda fd: None
    count = options.count or {"kill": 1000, "flip": 10_000}[options.what]
    with tempfile.TemporaryDirectory() as folder:
        problems = list({"kill": kills, "flip": flips}[options.what](count, Path(folder)))
    for problem in problems[:20]:
        print(problem)
    print(f"{options.what}: {count} injections, {len(problems)} problems (bar: 0)")
    if not options.dry:
        write(f"registry-{options.what}", {"injections": count, "problems": len(problems), "bar": 0})
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
