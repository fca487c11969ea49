"""repeng's extraction, timed by benchmarks/extraction.py: runs in the peers' environment."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Load, warm up, then extract each time a line comes in."""
    import torch
    from repeng import ControlModel, ControlVector, DatasetEntry
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    hf = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task["dtype"]))
    model = ControlModel(hf, list(range(-1, -task["layers"], -1)))
    entries = [DatasetEntry(prompt + positive, prompt + negative) for prompt, positive, negative in task["pairs"]]

    def extract(chosen: list[Any], batch_size: int | None) -> tuple[float, Any]:
        chosen_size = {} if batch_size is None else {"batch_size": batch_size}
        start = time.perf_counter()
        vector = ControlVector.train(model, tokenizer, chosen, **chosen_size)
        return time.perf_counter() - start, vector

    extract(entries[:2], task["batch_size"])
    print(json.dumps({name: version(name) for name in ("repeng", "torch", "transformers", "numpy")}), flush=True)
    for line in sys.stdin:
        seconds, vector = extract(entries, json.loads(line)["batch_size"])
        # What it takes for the last block's output is past the model's final norm: not comparable, left out.
        kept = {str(layer): torch.tensor(found) for layer, found in vector.directions.items()}
        kept.pop(str(task["layers"] - 1))
        save_file(kept, sys.argv[2])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
