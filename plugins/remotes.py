"""The built-in remotes of the registry: a folder, and object stores."""

from pathlib import Path

from engrain.plugins.spec import RegisterRemote, hookimpl
from engrain.registry.objects import ObjectRemote
from engrain.registry.remote import FolderRemote, Remote


@hookimpl
def register_remotes(register: RegisterRemote) -> None:
    """A folder for what has no scheme; the schemes of obstore for the rest."""
    register("folder", open_folder)
    for scheme in ("s3", "gs", "az"):
        register(scheme, ObjectRemote)


def open_folder(where: str) -> Remote:
    """Open a folder."""
    return FolderRemote(Path(where))
