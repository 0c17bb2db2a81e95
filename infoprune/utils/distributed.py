"""Several processes as one: who is first, who takes which batches, and running sums joined by one all-reduce.

`torchrun` starts the processes, tells them of each other and ends all of them when one dies. Where it did not start
this process, there is one process, the first, and every function here returns what it was given.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from infoprune.errors import RunError, UserError

Item = TypeVar("Item")
# For what the first does alone while the others wait. A dead process is noticed at once, by torchrun, not by this.
PATIENCE = timedelta(hours=4)


def start(device: str) -> str:
    """Joins the processes that torchrun started, and says which device is this one's.

    Args:
        device: "auto", "cpu" or "cuda"; the last, and the first where there are GPUs, become "cuda:<local rank>".

    Raises:
        UserError: for one device among several processes, or fewer GPUs than processes.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"[run] device = '{device}' for several processes; each takes its own with 'cuda' or 'auto'")
    gpus = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if gpus:
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise UserError(f"process {local} of this machine finds {count} GPUs; start torchrun with fewer processes")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE)
    return device if gpus else "cpu"


def stop() -> None:
    """Leaves the group, at the end of a run that succeeded."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes and decides."""
    return rank() == 0


class Share(Generic[Item]):
    """This process's share of some batches: every n-th, so that batch i of the whole lies with process i mod n.

    >>> list(Share(["all", "of", "them"]))  # alone
    ['all', 'of', 'them']

    Attributes:
        whole: all batches, the same on every process.
        rank, world: number of this process and of all.

    Raises:
        UserError: for fewer batches than processes.
    """

    def __init__(self, whole: Sequence[Item]) -> None:
        self.whole, self.rank, self.world = whole, rank(), world()
        if len(whole) < self.world:
            raise UserError(
                f"{len(whole)} batches cannot be shared by {self.world} processes; raise [calibration] batches or "
                "start fewer processes"
            )

    def __len__(self) -> int:
        return len(range(self.rank, len(self.whole), self.world))

    def __iter__(self) -> Iterator[Item]:
        return iter(self.whole[self.rank :: self.world])


def sharers(batches: Iterable[Any]) -> int:
    """Number of processes that share these batches; 1 for what every process has as a whole.

    Only shares are joined: a loader of the user's own, the same on every process, is left alone.
    """
    return int(getattr(batches, "world", 1))


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over all processes, by one all-reduce in float64.

    Args:
        tensors: equally many of equal shapes on every process, of any type and on any device.

    Returns:
        The sums, in their order, each of its tensor's type and on its device; integers are exact up to 2⁵³.

    Raises:
        RunError: where the processes give different amounts.
    """
    return _unpacked(_all_reduced(_packed(tensors)), tensors) if world() > 1 else list(tensors)


def gather(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """What every process holds under the same names, in the order of the processes, by one all-reduce in float64.

    >>> gather({"count": torch.tensor(3)})  # alone
    [{'count': tensor(3)}]

    Args:
        tensors: equal names on every process, and equal shapes but for the first axis, along which one process may
            hold more than another; see `sum_over_ranks`.

    Raises:
        RunError: where the processes give different names.
    """
    if world() == 1:
        return [dict(tensors)]
    # How long each is at each process: a second, tiny all-reduce.
    lengths = _rows([torch.tensor([value.numel() for value in tensors.values()])]).long()
    longest = int(lengths.sum(1).max())
    rows = _rows([*tensors.values(), torch.zeros(longest - int(lengths[rank()].sum()))])
    return [
        {
            name: part.view(-1, *value.shape[1:]).to(value) if value.dim() else part.view(()).to(value)
            for (name, value), part in zip(tensors.items(), row.split([*own, longest - sum(own)]), strict=False)
        }
        for row, own in zip(rows, lengths.tolist(), strict=True)
    ]


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    """What each process gives, all in one row of its own: `processes x numbers`."""
    mine = _packed(tensors)
    rows = mine.new_zeros(world(), len(mine))
    rows[rank()] = mine
    return _all_reduced(rows.flatten()).view(world(), -1)


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    flat = [tensor.detach().to(_meeting_place(), torch.float64).flatten() for tensor in tensors]
    return torch.cat([torch.zeros(0, dtype=torch.float64, device=_meeting_place()), *flat])


def _unpacked(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(like.shape).to(like) for part, like in zip(parts, tensors, strict=True)]


def _all_reduced(flat: Tensor) -> Tensor:
    # Checked first, since an all-reduce of different lengths ends in a crash or in silent nonsense.
    lengths = torch.tensor([len(flat), -len(flat)], device=flat.device)
    dist.all_reduce(lengths, dist.ReduceOp.MAX)
    if int(lengths.sum()) != 0:
        raise RunError(
            f"process {rank()} has {len(flat)} running sums, another has {int(lengths[0])} or {-int(lengths[1])}: "
            "they saw different layers; does the model's path depend on the images? run it in one process"
        )
    dist.all_reduce(flat)
    return flat


def from_first(values: Sequence[float]) -> list[float]:
    """What the first process holds: decisions are its own, so that no two processes go different ways."""
    if world() == 1:
        return list(values)
    told = torch.tensor(values, dtype=torch.float64, device=_meeting_place())
    dist.broadcast(told, src=0)
    return list(told.tolist())


def decide(question: Callable[[], bool]) -> bool:
    """The first process's answer; the others do not ask themselves, and wait for it."""
    return from_first([float(is_first() and question())]) == [1.0]


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors with those of the first process."""
    for tensor in tensors if world() > 1 else ():
        dist.broadcast(tensor, src=0)


def wait() -> None:
    """Waits until every process has come here."""
    sum_over_ranks([torch.zeros(1)])


@contextmanager
def in_turn() -> Iterator[None]:
    """First the first process alone, then the others: for what measures time."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def _meeting_place() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def together() -> Iterator[None]:
    """Turns the many ways in which a lost process shows into one message.

    Raises:
        RunError: where another process died.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Connection closed"))
        if world() == 1 or isinstance(error, RunError) or not lost:
            raise
        raise RunError(
            f"another of the {world()} processes died, and its own message says why; the same command again resumes "
            "with the step that was running"
        ) from error
