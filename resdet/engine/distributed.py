"""Several processes: torch.distributed, started by torchrun, srun or mpirun, on GPUs (nccl) and without (gloo)."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import zlib
from contextlib import suppress
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from resdet.errors import InputError

VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
"""Environment variables with which each launcher tells rank, number of processes, and rank on this machine."""


def start(launcher: str, *, timeout: int = 60) -> None:
    """Join the group of processes that a launcher started; ``"none"`` stays alone.

    Args:
        launcher: none, pytorch, slurm or mpi.
        timeout: seconds that the processes wait for each other here. Later on they wait for a day (the proposals of a
            localizer take hours); one that has ended is noticed at once.

    Raises:
        InputError: the launcher's variables are not in the environment, a process is missing, or the port is in use.
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
    rank, world, local = (os.environ[name] for name in VARIABLES[launcher])
    os.environ |= {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local}
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_slurm_host() if launcher == "slurm" else "127.0.0.1"
    os.environ.setdefault("MASTER_PORT", str(_port_of_job()))
    try:
        patience = timedelta(seconds=timeout if rank == "0" else timeout / 2)  # all but the first try twice
        store, _, _ = next(rendezvous("env://", int(rank), int(world), timeout=patience))
    except (RuntimeError, ValueError) as error:  # torch's errors of networks are RuntimeErrors
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        taken = "address already in use" in str(error).lower() or "EADDRINUSE" in str(error)
        needed = f"MASTER_PORT=<a free port>, or all {world} processes within {timeout} s (run.start_timeout)"
        found = "a port in use" if taken else str(error).strip().splitlines()[0]
        raise InputError(f"process {rank} of {world}, meeting at {place}", found=found, needed=needed) from error
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(local) % torch.cuda.device_count())  # Slurm may show each process one GPU only
        backend = "cpu:gloo,cuda:nccl"  # counts and detections are joined on the CPU
    dist.init_process_group(backend, store=store, rank=int(rank), world_size=int(world), timeout=timedelta(days=1))


def _port_of_job() -> int:
    """A port that all processes of a job agree on, and that other jobs of the machine do not take."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE")
    job = "/".join(os.environ.get(name, "") for name in names)
    return 20_000 + zlib.crc32(job.encode()) % 10_000  # below the ports that systems give away by themselves


def _first_slurm_host() -> str:
    nodes = os.environ.get("SLURM_NODELIST", "")
    if not nodes or os.environ.get("SLURM_NNODES", "1") == "1":
        return "127.0.0.1"
    return subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True).stdout.split()[0]


def tell_end(reason: str) -> None:
    """Let the others know why this process ends before its time."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # the store went with the process that kept it
            _store().set("ended", f"process {rank()} ended ({reason})")


def end_of_others(error: BaseException) -> str | None:
    """What ended another process, where that is why an operation over all of them has failed; else None."""
    text = str(error).lower()
    if not dist.is_initialized() or not any(word in text for word in ("gloo", "nccl", "connection", "socket")):
        return None
    with suppress(RuntimeError):
        store = _store()
        store.set_timeout(timedelta(seconds=2))
        return store.get("ended").decode()
    return "another process has ended"


def leave(code: int) -> None:
    """End this process, one of several.

    At once, past the destructors: those of a gloo group may wait for their own threads (torch 2.6) or abort.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process among them; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(table: Tensor) -> Tensor | None:
    """The rows of all processes, in the order of ranks, on rank 0; None elsewhere. No object is pickled.

    Args:
        table: on the CPU, of any number of rows; type and row shape the same everywhere.
    """
    if world_size() == 1:
        return table
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(table)]))
    if rank():
        if len(table):
            dist.send(table.contiguous(), 0)
        return None
    parts = [table, *(table.new_empty(int(count), *table.shape[1:]) for count in counts[1:])]
    for source, part in enumerate(parts):
        if source and len(part):
            dist.recv(part, source)
    return torch.cat(parts)


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
