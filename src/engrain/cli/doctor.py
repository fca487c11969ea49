"""``engrain doctor``: what is installed, and what works on this machine."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engrain.cli.options import json_option, model_option
from engrain.cli.output import print_json
from engrain.core.errors import CheckError, EngrainError
from engrain.plugins.manager import Plugins

_PACKAGES = (
    "engrain",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "omegaconf",
    "pluggy",
    "gguf",
    "scikit-learn",
    "vllm",
)


@click.command("doctor")
@model_option
@json_option
@click.pass_obj
def doctor_command(plugins: Plugins, model_name: str, as_json: bool) -> None:
    """Check the installation, the plugins, the registry and a model; exit code 1 when something does not work.

    Example: engrain doctor -m demo
    """
    checks: dict[str, Callable[[], str]] = {
        "plugins": lambda: _plugins(plugins),
        "registry": _registry,
        f"model {model_name}": lambda: _model(plugins, model_name),
    }
    results = []
    for name, check in checks.items():
        try:
            results.append({"check": name, "passed": True, "found": check()})
        except EngrainError as error:
            results.append({"check": name, "passed": False, "found": str(error)})
    packages = {name: _version(name) for name in _PACKAGES}
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    if as_json:
        print_json({"machine": machine, "packages": packages, "checks": results})
    else:
        _print(machine, packages, results)
    failed = [str(result["check"]) for result in results if not result["passed"]]
    if failed:
        raise CheckError(f"{', '.join(failed)}: see above for the mend.")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plugins(plugins: Plugins) -> str:
    found = plugins.behaviors()
    plugins.check()
    if plugins.broken:
        raise CheckError("; ".join(map(str, plugins.broken)))
    return f"{len(found)} behaviors: {', '.join(found)}"


def _registry() -> str:
    from engrain.registry.store import Store

    store = Store()
    return f"{store.root}: {len(store.names('vector'))} vectors"


def _model(plugins: Plugins, name: str) -> str:
    from engrain.loading import load

    start = time.perf_counter()
    model = load(name, plugins=plugins)
    loaded = time.perf_counter() - start
    # One token through every block and the hooks: what is asked of a model everywhere else.
    states = model.hidden_states(["hello"], layers=[len(model.blocks) - 1])
    trees = "shares prompts" if model.sees_trees else "runs replies one by one"
    shape = f"{len(model.blocks)} blocks, d_model {states[0].shape[-1]}, {model.hf.dtype}"
    return f"{shape}, {trees}, loaded in {loaded:.1f} s"


def _print(machine: dict[str, Any], packages: dict[str, str | None], results: list[dict[str, Any]]) -> None:
    table = Table("what", "found")
    for name, value in machine.items():
        table.add_row(name, str(value))
    for name, value in packages.items():
        table.add_row(name, value or "not installed")
    for result in results:
        mark = "ok" if result["passed"] else "FAILED"
        # Errors and names of others: Text takes them as they are, markup in them stays letters.
        table.add_row(Text(result["check"]), Text(f"{mark}: {result['found']}"))
    Console().print(table)
