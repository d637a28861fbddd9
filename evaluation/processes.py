"""Which of several processes this is: one alone, or one of those that `accelerate launch` or torchrun started."""

import os

import torch

from .runner import Process


def this_process(device: str = "auto") -> tuple[Process, torch.device]:
    """
    Join the other processes, if there are any.

    Args:
        device (`str`, defaults to `"auto"`): `auto` gives each process a GPU, or the processor where there is none.

    Returns:
        `tuple[Process, torch.device]`: Number, count and barrier, and where this one computes.

    Raises:
        `RuntimeError`: The launcher says another number of processes than has joined.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected == 1:
        if device != "auto":
            return Process(), torch.device(device)
        return Process(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if state.num_processes != expected:
        raise RuntimeError(
            f"{state.num_processes} processes have joined, and WORLD_SIZE is {expected}: each would answer everything."
        )
    where = state.device if device == "auto" else torch.device(device)
    return Process(state.process_index, state.num_processes, state.wait_for_everyone), where
