"""A new behavior plugin as a package of its own, written from the template that lies beside this file."""

import keyword
from pathlib import Path
from string import Template

from engrain.core.errors import InputError
from engrain.core.files import folder_atomically
from engrain.core.names import check_name

_TEMPLATE = Path(__file__).parent / "template"
_SUFFIX = ".template"


def write_package(name: str, folder: Path, *, force: bool = False) -> list[Path]:
    """Write an installable plugin package that passes its own test, and return its files.

    Args:
        name: of the behavior.
        folder: where; made whole or not at all.
        force: replace a folder that is there.

    Raises:
        InputError: not a name, or the folder cannot be written.
        OutputExistsError: the folder exists and ``force`` is false.
    """
    check_name(name, "behavior")
    package = "engrain_" + name.replace("-", "_")
    if keyword.iskeyword(package):
        raise InputError(f"'{name}' cannot name a package; choose another name.")
    written: list[Path] = []
    with folder_atomically(folder, force=force) as draft:
        for source in sorted(path for path in _TEMPLATE.rglob("*") if path.is_file()):
            relative = source.relative_to(_TEMPLATE).as_posix().replace("src/package/", f"src/{package}/")
            target = draft / relative.removesuffix(_SUFFIX)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8")
            if relative.endswith(_SUFFIX):
                text = Template(text).substitute(name=name, package=package)
            target.write_text(text, encoding="utf-8")
            written.append(folder / target.relative_to(draft))
    return written
