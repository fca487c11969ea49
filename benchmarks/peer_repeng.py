"""repeng's extraction, timed by benchmarks/extraction.py: runs in the peers' environment."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Load, warm up, then extract each time a line comes in."""
    import torch
    from repeng import ControlModel, ControlVector, DatasetEntry
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    tokenizer.pad_token_id = 0
    hf = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task["dtype"]))
    model = ControlModel(hf, list(range(-1, -task["layers"], -1)))
    entries = [DatasetEntry(prompt + positive, prompt + negative) for prompt, positive, negative in task["pairs"]]

    def extract(chosen: list[DatasetEntry]) -> float:
        start = time.perf_counter()
        ControlVector.train(model, tokenizer, chosen, batch_size=task["batch_size"])
        return time.perf_counter() - start

    extract(entries[:2])
    names = ("repeng", "torch", "transformers", "numpy")
    print(json.dumps({name: version(name) for name in names}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": extract(entries)}), flush=True)


if __name__ == "__main__":
    main()
