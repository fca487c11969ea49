"""Generation steered by repeng or steering-vectors, timed by benchmarks/overhead.py: runs in the peers' environment."""

import json
import sys
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Load, warm up, then generate each time a line says with which vectors."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    library = sys.argv[2]
    torch.set_num_threads(task["threads"])
    hf: Any = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    vectors = load_file(task["vectors"])["vectors"]
    inputs = torch.tensor([task["prompt"]])
    steer = {"repeng": repeng, "steering_vectors": steering_vectors}[library]

    def generate(count: int, layers: list[int]) -> float:
        start = time.perf_counter()
        with torch.inference_mode(), steer(hf, vectors[:count], layers):
            hf.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=task["tokens"],
                min_new_tokens=task["tokens"],
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - start

    generate(1, [0])
    names = (library.replace("_", "-"), "torch", "transformers")
    print(json.dumps({name: version(name) for name in names}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": generate(**json.loads(line))}), flush=True)


@contextmanager
def repeng(hf: Any, vectors: Any, layers: list[int]) -> Any:
    """Steer as repeng does: its vectors are added up, and the blocks wrapped; without vectors, nothing."""
    from repeng import ControlModel, ControlVector

    if not len(vectors):
        yield
        return
    own = [
        ControlVector(hf.config.model_type, {layer: vector[layer].numpy() for layer in layers}) for vector in vectors
    ]
    model = ControlModel(hf, layers)
    # The first one times 1: they have no neutral element.
    model.set_control(sum(own[1:], start=own[0] * 1.0))
    try:
        yield
    finally:
        model.unwrap()


def steering_vectors(hf: Any, vectors: Any, layers: list[int]) -> AbstractContextManager[Any]:
    """Steer as steering-vectors does: a hook for each vector and block."""
    from steering_vectors import SteeringVector

    stack = ExitStack()
    for vector in vectors:
        stack.enter_context(SteeringVector({layer: vector[layer] for layer in layers}).apply(hf))
    return stack


if __name__ == "__main__":
    main()
