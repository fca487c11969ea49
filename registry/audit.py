"""`verify`: everything is hashed again, a bad item is taken out of the way, and the rest goes on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engrain.core.errors import EngrainError, InputError, IntegrityError
from engrain.core.names import NAME
from engrain.registry.blob import chunks, digest_of, measure, read_now, reading, sync_folder
from engrain.registry.history import History
from engrain.registry.journal import Chain, read_chain
from engrain.registry.mark import ref_path, tombstone_path
from engrain.registry.policy import protected_aliases
from engrain.registry.reference import KINDS, Reference
from engrain.registry.state import marks, replay
from engrain.registry.store import Store
from engrain.registry.tensors import SAFETENSORS_TYPE, check_tensors

_TURNS = 20  # more looks at a registry that is written to all the time would not end


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        path: the file.
        what: one phrase on what is wrong with it.
        needs: the digest of the bytes that belong there, or None.
        uses: the versions that cannot be used meanwhile.
    """

    path: Path
    what: str
    needs: str | None = None
    uses: tuple[str, ...] = ()

    def __str__(self) -> str:
        used = f" (needed by {', '.join(self.uses[:3])}{', ...' if len(self.uses) > 3 else ''})" if self.uses else ""
        return f"{self.path}: {self.what}{used}"


@dataclass
class Report:
    """What `audit` found.

    Attributes:
        problems: what is wrong.
        remarks: what is odd, and no fault.
        quarantined: where damaged objects were put.
        files, size: objects and manifests that were hashed, and their bytes.
        versions: how many there are.
    """

    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    quarantined: list[Path] = field(default_factory=list)
    files: int = 0
    size: int = 0
    versions: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def audit(store: Store, *, keep: bool = False) -> Report:
    """Hash everything again, and hold the names, the aliases and the tombstones against the journal.

    A damaged object or manifest is moved to ``quarantine/``, where it is in nobody's way: what is published or fetched
    again takes its place. Everything else that is damaged stays where it is until `repair`.

    Args:
        store: where.
        keep: leave damaged objects where they are, as in a folder that may not be written.

    Raises:
        InputError: the registry may not be read, or is of a newer format.
    """
    report = Report()
    try:
        store.check_format()
    except IntegrityError as error:
        report.problems.append(Problem(store.root / "registry.json", str(error)))
        return report
    if not (store.root / "registry.json").exists() and (store.root / "names").exists():
        report.problems.append(Problem(store.root / "registry.json", "is missing"))
    try:
        protected_aliases(store)
    except IntegrityError as error:
        report.problems.append(Problem(store.root / "policy.json", str(error)))
    damaged = dict(_rehash(store, report))
    _compare(store, report)
    _check_versions(store, damaged, report)
    if damaged and not keep:
        _quarantine(store, damaged, report)
    return report


def disk_names(store: Store) -> list[tuple[str, str]]:
    """Return kind and name of everything that has a folder.

    Raises:
        InputError: a folder may not be read.
    """
    found = []
    for kind in KINDS:
        folder = store.root / "names" / kind
        with reading(folder):
            inner = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found += [(kind, name) for name in inner if NAME.fullmatch(name)]
    return found


def _rehash(store: Store, report: Report) -> Iterator[tuple[Path, str]]:
    for room in ("objects", "manifests"):
        for path in sorted((store.root / room).glob("sha256/*/*")):
            try:
                digest, size = measure(chunks(path))
            except FileNotFoundError:
                continue  # a collector was at work; what something needs is missed later
            except OSError as error:
                yield path, f"cannot be read ({error.strerror})"
                continue
            report.files, report.size = report.files + 1, report.size + size
            if digest != digest_of(path):
                yield path, "does not hold the bytes that its name says"


def _compare(store: Store, report: Report) -> None:
    """Check the journal, and what it says against the files.

    A writer may be at work: where the journal grew meanwhile, what seemed wrong is looked at again.
    """
    path = store.root / "journal" / "events.jsonl"
    for _ in range(_TURNS):
        found = Report()
        size = _size(path)
        _check_projections(store, _check_journal(store, found), found)
        if found.passed or _size(path) == size:
            break
    report.problems += found.problems
    report.remarks += found.remarks


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _check_journal(store: Store, report: Report) -> Chain:
    path = store.root / "journal" / "events.jsonl"
    try:
        chain = read_chain(store.root / "journal")
    except IntegrityError as error:
        report.problems.append(Problem(path, str(error)))
        return Chain((), {}, (), ())
    report.problems += [Problem(path, fault.problem) for fault in chain.faults]
    report.remarks += chain.remarks
    if chain.events and not chain.events[-1].ends:
        last = chain.events[-1]
        said = "at work, or interrupted; the next write settles it"
        report.remarks.append(f"event {last.seq}, {last.act}, is open: {said}.")
    return chain


def _check_projections(store: Store, chain: Chain, report: Report) -> None:
    """Compare the files of names, aliases and tombstones with what the journal says, and with themselves."""
    state = replay(chain.settled)
    about = store.root / "registry.json"
    if state.registry and read_now(about) != state.registry:
        report.problems.append(Problem(about, "is not what the journal says"))
    pending = _pending(store, chain)
    for kind, name in disk_names(store):
        what = f"{kind}/{name}"
        history = store.history(kind, name)
        report.problems += _damaged_lines(history, report)
        if chain.events:
            report.problems += _differing_lines(history, state.lines.get(what, []), pending)
    for what, lines in state.lines.items():
        kind, _, name = what.partition("/")
        if not (store.root / "names" / kind / name).is_dir():
            path = store.history(kind, name).path
            report.problems.append(Problem(path, f"is missing; it has {len(lines)} versions"))
    for path, wanted in marks(state, store.root):
        if path in pending:
            continue
        try:
            raw = read_now(path)
        except IntegrityError as error:
            report.problems.append(Problem(path, str(error)))
            continue
        if raw is None:
            report.problems.append(Problem(path, "is missing"))
        elif wanted is None:
            report.problems.append(Problem(path, "is not in the journal"))
        elif raw != wanted:
            report.problems.append(Problem(path, "is not what the journal says"))


def _pending(store: Store, chain: Chain) -> set[Path]:
    """Return the files that an open act may have written already."""
    if not chain.events or chain.events[-1].ends:
        return set()
    last = chain.events[-1]
    said = last.fields
    if last.act in ("alias", "rollback"):
        return {ref_path(store.root, Reference.parse(said["alias"]))}
    if last.act not in ("publish", "delete"):
        return set()
    kind, _, name = said["name"].partition("/")
    history = store.history(kind, name)
    return {history.path, tombstone_path(history.folder, said.get("v", 0))}


def _damaged_lines(history: History, report: Report) -> Iterator[Problem]:
    try:
        raw = read_now(history.path) or b""
        lines = history.raw_lines()
    except EngrainError as error:
        yield Problem(history.path, str(error))
        return
    if raw and not raw.endswith(b"\n"):
        report.remarks.append(f"'{history.path}' ends with a write that was cut off; the next write removes it.")
    for number, line in enumerate(lines, 1):
        try:
            history.parse(line, number)
        except IntegrityError as error:
            yield Problem(history.path, str(error))


def _differing_lines(history: History, expected: list[bytes], pending: Iterable[Path]) -> Iterator[Problem]:
    try:
        lines = history.raw_lines()
    except EngrainError:
        return
    if len(lines) < len(expected):
        yield Problem(history.path, f"lacks the versions {len(lines) + 1} to {len(expected)}")
    extra = len(lines) - len(expected)
    if extra > (1 if history.path in pending else 0):
        yield Problem(history.path, f"has {extra} versions that are not in the journal")
    for number, (line, record) in enumerate(zip(lines, expected, strict=False), 1):
        if record and line != record:
            yield Problem(history.path, f"line {number} is not what the journal says")


def _check_versions(store: Store, damaged: dict[Path, str], report: Report) -> None:
    """Check the manifest of every version, and that its blobs are there; note damaged files, with their users."""
    uses: dict[Path, list[str]] = {path: [] for path in damaged}
    missing: dict[Path, list[str]] = {}
    for kind, name in disk_names(store):
        history = store.history(kind, name)
        for number, raw in enumerate(_lines(history), 1):
            try:
                line = history.parse(raw, number)
            except IntegrityError:
                continue
            report.versions += 1
            reference = str(Reference(kind, name, number))
            if tombstone_path(history.folder, number).exists():
                continue
            paths = [store.manifest_path(line.digest)]
            paths += [store.object_path(line.provenance)] if line.provenance is not None else []
            if paths[0] not in damaged and paths[0].exists():
                paths += _blobs(store, line.digest, kind, reference, damaged, report)
            for path in paths:
                if path in damaged:
                    uses[path].append(reference)
                elif not path.exists():
                    missing.setdefault(path, []).append(reference)
    for path, what in damaged.items():
        report.problems.append(Problem(path, what, digest_of(path), tuple(uses[path])))
    for path, references in missing.items():
        report.problems.append(Problem(path, "is missing", digest_of(path), tuple(references)))


def _lines(history: History) -> list[bytes]:
    try:
        return history.raw_lines()
    except EngrainError:
        return []  # named before


def _blobs(
    store: Store, digest: str, kind: str, reference: str, damaged: dict[Path, str], report: Report
) -> Iterator[Path]:
    path = store.manifest_path(digest)
    try:
        manifest = store.read_manifest(digest, kind)
    except EngrainError as error:
        report.problems.append(Problem(path, str(error), None, (reference,)))
        return
    for layer in (manifest["config"], *manifest["layers"]):
        blob = store.object_path(layer["digest"])
        yield blob
        if blob in damaged or not blob.exists():
            continue
        if blob.stat().st_size != layer["size"]:
            report.problems.append(Problem(path, f"gives a wrong size for {layer['digest']}", None, (reference,)))
        if layer["mediaType"] == SAFETENSORS_TYPE:
            try:
                check_tensors(blob, f"'{blob}'")
            except InputError as error:
                report.problems.append(Problem(blob, str(error), None, (reference,)))


def _quarantine(store: Store, damaged: dict[Path, str], report: Report) -> None:
    try:
        with store.writing() as journal:
            # Hashed once more: whoever published the same content meanwhile has put it right.
            moved = [path for path in damaged if not _is_right(path)]
            report.quarantined += [set_aside(store, path) for path in moved]
            if moved:
                journal.note("quarantine", files=[str(path.relative_to(store.root)) for path in moved])
    except (InputError, IntegrityError) as error:
        report.remarks.append(f"Damaged files stay where they are: {error}")


def _is_right(path: Path) -> bool:
    try:
        return measure(chunks(path))[0] == digest_of(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def set_aside(store: Store, path: Path) -> Path:
    """Move a damaged file to ``quarantine/``, and return where it is."""
    folder = store.root / "quarantine"
    folder.mkdir(exist_ok=True)
    stem = "-".join(path.relative_to(store.root).parts)
    place = next(one for one in (folder / f"{stem}.{turn}" for turn in range(10_000)) if not one.exists())
    path.rename(place)
    sync_folder(path.parent)
    return place
