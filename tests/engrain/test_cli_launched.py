"""``engrain compile`` under ``accelerate launch``: two processes with FSDP2, one task vector, published once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engrain.core.contrast import PairSet
from engrain.core.vector import Calibration, SteeringVector
from engrain.loading import load
from engrain.registry.store import Parent, Store
from engrain.registry.task_vectors import read_task_vector
from engrain.registry.vectors import publish_pairs, publish_vector
from saying import behavior

_TESTS = Path(__file__).parents[1]
# Little to do, in every process.
_SCRIPT = """
import sys
from functools import partial
import pytest
import torch
from engrain.cli.main import main
from engrain.core.compile.recipe import Recipe
from engrain.core.neutral import read_neutral
from saying import behavior, hurry, plugins_with

torch.set_num_threads(1)
patch = pytest.MonkeyPatch()
hurry(patch, plugins_with(behavior()))
patch.setattr("engrain.gathering.read_neutral", lambda *of, **split: read_neutral(*of, **split)[::20])
patch.setattr("engrain.compiling.Recipe", partial(Recipe, steps=4))
sys.argv[0] = "engrain"
main()
"""


def publish(folder: Path) -> None:
    model, own = load(str(folder)), behavior()
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(1))
    vector = SteeringVector({1: drawn}, own.name, model.fingerprint).calibrated(Calibration(1, 1.0))
    pairs: PairSet = own.pairs().split("train")
    publish_vector(Store(), own.name, vector, [Parent("pairs", publish_pairs(Store(), own.name, pairs).digest)])


def test_processes_of_a_launcher_compile_together(folder: Path, tmp_path: Path) -> None:
    publish(folder)
    script = tmp_path / "compile.py"
    script.write_text(_SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    launch += ["--num_processes", "2", "--main_process_port", port]
    out = tmp_path / "made"
    asked = ["compile", "saying", "--force", "--json", "--out", str(out), "-m", str(folder)]
    path = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), *asked], check=False, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"task_vector": "task-vector/saying@1", "folder": str(out), "passed": None}
    assert done.stderr.count("compiling saying with distill") == 1
    made = read_task_vector(Store(), "saying")
    assert made.origin["backend"] == "distill"
    assert made.origin["forced"] is True
    assert min(look["short"] for look in made.origin["curve"]) < 1
    assert [str(one) for one in Store().names("task-vector")] == ["saying"]
    assert not list((tmp_path / "cache").rglob("checkpoint*"))


def test_a_control_is_refused_under_a_launcher(engrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = engrain("compile", "listening", "--control", "-m", folder)
    assert (done.code, "leave it out under a launcher" in done.err) == (2, True)
