"""pytorch-optimizer's APOLLO, timed by benchmarks/apollo.py: runs in the peers' environment."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Write where it goes with given gradients, warm up, then take a step each time a line comes in."""
    import torch
    from pytorch_optimizer import APOLLO
    from safetensors.torch import load_file, save_file

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])

    def build(parameters: list[Any], rank: int, scale_type: str, **how: Any) -> Any:
        group = {"params": parameters, "rank": rank, "projection_type": "std", **how}
        return APOLLO([group], lr=task["rate"], scale_type=scale_type)

    given, walked = load_file(task["gradients"]), {}
    for name, path in given.items():
        for kind, how in task["kinds"].items():
            weight = torch.nn.Parameter(torch.zeros(path.shape[1:], dtype=path.dtype))
            small = {**how, "rank": min(task["rank"], how["rank"])}
            optimizer = build([weight], **small, update_proj_gap=len(path) + 1, scale=task["scale"])
            for gradient in path:
                weight.grad = gradient.clone()
                optimizer.step()
            walked[f"{kind} {name} weight"] = weight.detach().contiguous()
            projection = optimizer.state[weight]["projector"].ortho_matrix
            walked[f"{kind} {name} projection"] = projection.contiguous()
    save_file(walked, sys.argv[2])

    optimizers, held = {}, {}
    for kind, how in task["kinds"].items():
        parameters = [torch.nn.Parameter(torch.randn(shape) / 50) for shape in task["shapes"]]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape) / 1000
        # The gap of Apollo: the projection is drawn at the warm-up and not again.
        optimizers[kind] = build(parameters, **how, update_proj_gap=200, scale=1.0)
        optimizers[kind].step()
        kept = [value for state in optimizers[kind].state.values() for value in state.values()]
        kept += [one.ortho_matrix for one in kept if hasattr(one, "ortho_matrix")]
        held[kind] = sum(one.numel() * one.element_size() for one in kept if isinstance(one, torch.Tensor))
    answer = {name: version(name) for name in ("pytorch-optimizer", "torch")}
    print(json.dumps(answer | {"state_bytes": held}), flush=True)
    for line in sys.stdin:
        optimizer = optimizers[json.loads(line)["kind"]]
        start = time.perf_counter()
        optimizer.step()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
