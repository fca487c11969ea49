"""steering-vectors' extraction, timed by benchmarks/extraction.py: runs in the peers' environment."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Load, warm up, then extract each time a line comes in."""
    import torch
    from safetensors.torch import save_file
    from steering_vectors import train_steering_vector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task["dtype"]))
    pairs = [(prompt + positive, prompt + negative) for prompt, positive, negative in task["pairs"]]

    def extract(chosen: list[tuple[str, str]], batch_size: int | None) -> tuple[float, Any]:
        chosen_size = {} if batch_size is None else {"batch_size": batch_size}
        start = time.perf_counter()
        vector = train_steering_vector(model, tokenizer, chosen, **chosen_size)
        return time.perf_counter() - start, vector

    extract(pairs[:2], task["batch_size"])
    names = ("steering-vectors", "torch", "transformers", "numpy")
    print(json.dumps({name: version(name) for name in names}), flush=True)
    for line in sys.stdin:
        seconds, vector = extract(pairs, json.loads(line)["batch_size"])
        save_file({str(layer): found for layer, found in vector.layer_activations.items()}, sys.argv[2])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
