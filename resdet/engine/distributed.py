"""Several processes: torch.distributed through mmengine's launchers, on GPUs (nccl) and without them (gloo)."""

from __future__ import annotations

import os

import torch
from mmengine.dist import init_dist
from torch import Tensor
from torch import distributed as dist

from resdet.errors import InputError

VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
"""Environment variables with which each launcher tells rank, number of processes, and rank on this machine."""


def start(launcher: str) -> None:
    """Join the group of processes that a launcher started; ``"none"`` stays alone.

    Raises:
        InputError: the launcher's variables are not in the environment.
    """
    if launcher == "none" or dist.is_initialized():
        return
    missing = [name for name in VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise InputError(
            f"--launcher {launcher}",
            found=f"environment without {', '.join(missing)}",
            needed={
                "pytorch": "start with: torchrun --nproc_per_node=N tools/... --launcher pytorch",
                "slurm": "start with: srun --ntasks=N ... --launcher slurm",
                "mpi": "start with: mpirun -np N ... --launcher mpi",
            }[launcher],
        )
    if torch.cuda.is_available():
        init_dist(launcher, backend="cpu:gloo,cuda:nccl")  # counts and detections are joined on the CPU
        return
    rank, world, local = (os.environ[name] for name in VARIABLES[launcher])
    os.environ |= {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    dist.init_process_group("gloo")


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process among them; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(rows: list) -> list | None:
    """The rows of all processes, in the order of ranks, on rank 0; None elsewhere."""
    if world_size() == 1:
        return rows
    parts = [None] * world_size() if rank() == 0 else None
    dist.gather_object(rows, parts)
    return None if parts is None else [row for part in parts for row in part]


def everywhere(condition: bool) -> bool:
    """Whether it holds in every process."""
    if world_size() == 1:
        return condition
    failed = torch.tensor(0 if condition else 1)
    dist.all_reduce(failed)
    return not failed.item()


def mean(values: Tensor) -> Tensor:
    """Mean over the processes, elementwise."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def copy_from_first(values: Tensor) -> None:
    """Overwrite a tensor by that of rank 0."""
    if world_size() > 1:
        dist.broadcast(values, 0)


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()
