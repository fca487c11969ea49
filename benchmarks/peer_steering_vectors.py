"""steering-vectors' extraction, timed by benchmarks/extraction.py: runs in the peers' environment."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Load, warm up, then extract each time a line comes in."""
    import torch
    from steering_vectors import train_steering_vector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    tokenizer.pad_token_id = 0
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task["dtype"]))
    pairs = [(prompt + positive, prompt + negative) for prompt, positive, negative in task["pairs"]]

    def extract(chosen: list[tuple[str, str]]) -> float:
        start = time.perf_counter()
        train_steering_vector(model, tokenizer, chosen, batch_size=task["batch_size"], show_progress=False)
        return time.perf_counter() - start

    extract(pairs[:2])
    names = ("steering-vectors", "torch", "transformers", "numpy")
    print(json.dumps({name: version(name) for name in names}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": extract(pairs)}), flush=True)


if __name__ == "__main__":
    main()
