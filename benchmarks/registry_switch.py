"""A compiled behavior on a running model: how long a switch holds it up, and from a roll back elsewhere to its effect.

python -m benchmarks.registry_switch
python -m benchmarks.registry_switch --model tiny --dry

The task vectors change the down-projection of every block, as a compiled behavior does; their numbers are random, which
costs the same. `switch` is what generations wait for; `effect` is from the start of a roll back to the moment that the
model runs the version it goes back to, with a thread that looks at the alias every 50 ms.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import show, spread, write
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.loading import load
from engrain.registry.alias import move_alias
from engrain.registry.deployment import Deployment
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector

ALIAS = Reference("task-vector", "brevity", alias="live")
BAR = 200.0  # ms for a switch
INTERVAL = 0.05  # seconds between two looks at the alias


def open_model(name: str) -> SteerableModel:
    """Load a model; ``tiny`` is the small random one of the tests."""
    if name != "tiny":
        return load(name)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import byte_tokenizer, random_model

    return SteerableModel(random_model("llama"), byte_tokenizer(), "tiny llama")


def compiled(model: SteerableModel, seed: int) -> TaskVector:
    """Return a change of every block's down-projection."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {name: weight.shape for name, weight in model.hf.named_parameters() if name.endswith("down_proj.weight")}
    tensors = {name: torch.randn(shape, generator=chance) / 1000 for name, shape in shapes.items()}
    return TaskVector("brevity", tensors, model.fingerprint)


@torch.no_grad()
def logits(model: SteerableModel) -> Tensor:
    """Return the logits of a fixed text."""
    found: Tensor = model.hf(input_ids=torch.arange(3, 40)[None]).logits
    return found


def switches(live: Deployment, store: Store, repeats: int) -> list[float]:
    """Return the milliseconds that generations waited, for roll backs and moves forward in turn."""
    found = []
    for _ in range(repeats):
        for back in (True, False):
            if back:
                roll_back(store, ALIAS)
            else:
                move_alias(store, ALIAS, 2)
            switch = live.update()
            assert switch is not None
            found.append(switch.seconds * 1000)
    return found


def effects(live: Deployment, store: Store, repeats: int) -> list[float]:
    """Return the milliseconds from the start of a roll back to its effect on the model that watches."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        roll_back(store, ALIAS)
        while live.version is None or live.version.number != 1:
            time.sleep(0.001)
        found.append((time.perf_counter() - start) * 1000)
        move_alias(store, ALIAS, 2)
        while live.version.number != 2:
            time.sleep(0.001)
    return found


def main() -> None:
    """Measure, print, and exit with 1 when a switch was not exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dry", action="store_true", help="Do not write the result.")
    options = parser.parse_args()
    model = open_model(options.model)
    base = logits(model)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        fresh = []
        for seed in (1, 2):
            made = compiled(model, seed)
            publish_task_vector(store, "brevity", made)
            move_alias(store, ALIAS, seed)
            other = open_model(options.model)
            other.apply(made)
            fresh.append(logits(other))
            del other
        with Deployment(store, model, ALIAS) as live:
            exact = torch.equal(logits(model), fresh[1])
            switched = switches(live, store, options.repeats)
            roll_back(store, ALIAS)
            live.update()
            exact = exact and torch.equal(logits(model), fresh[0])
            move_alias(store, ALIAS, 2)
            live.update()
            with live.watching(INTERVAL):
                effect = effects(live, store, options.repeats)
        restored = torch.equal(logits(model), base)
    show(
        [
            ["", "median ms", "min", "max", "bar"],
            ["switch", *spread(switched).values(), f"max <= {BAR:g}"],
            ["effect", *spread(effect).values(), ""],
        ]
    )
    print(f"equal to a fresh load, to the bit: {exact} (bar: True); the base again: {restored} (bar: True)")
    if not options.dry:
        result = {"model": options.model, "switch_ms": spread(switched), "effect_ms": spread(effect), "bar_ms": BAR}
        write("registry-switch", result | {"repeats": options.repeats, "exact": exact, "restored": restored})
    sys.exit(0 if exact and restored else 1)


if __name__ == "__main__":
    main()
