"""engrain under a launcher (``accelerate launch``, ``torchrun``): several processes that compile one task vector."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One of several.

    Attributes:
        first: whether it is the one that speaks and publishes.
        device: what it computes on, as torch names devices.
    """

    first: bool
    device: str


def launched() -> int:
    """Return how many processes the launcher has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[Process]:
    """Have this process work with the others inside of the block."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Process(dist.get_rank() == 0, device)
    finally:
        leave()


def leave() -> None:
    """End this process's work with the others.

    A thread of gloo outlives its group. Until it has let go of the last tensors, for which it needs the interpreter,
    Python may not shut down: the thread would abort the process. Asleep, this one leaves the interpreter to it. With
    threads that rarely get the interpreter a third of the processes were aborted, and after this sleep none of 200.
    """
    import torch.distributed as dist

    dist.destroy_process_group()
    time.sleep(0.1)
