"""What the processes that solve one network together say to each other.

Every step begins with a meeting, an all-gather of a few integers in which a rank also says that it
has failed. So all ranks learn of a failure at their next step, wherever they are.
"""

from __future__ import annotations

import hashlib
import pickle
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sylvinit.distributed.messages import Message
from sylvinit.errors import RankError, SylvinitError


class _Step(IntEnum):
    """What ranks meet for. Those without samples take part in what the others do."""

    FAIL = 0
    FOLLOW = 1
    NUMBERS = 2
    GATHER = 3
    REDUCE = 4
    BROADCAST = 5
    COMMIT = 6
    TENSORS = 7


_ABSENT = 2**62  # in the place of a number that a rank has not


class Ranks:
    """The ranks of a process group, or this process alone.

    Alone, every method gives back at once what it was given. Otherwise all ranks call the same
    methods in the same order; those that are not :attr:`members` call :meth:`follow` instead.

    Attributes:
        rank, size: of this process, and how many there are.
        device: where messages lie.
        members: ranks that have samples, in order; all of them until :meth:`choose_members`.
    """

    def __init__(self, group: Any = None, device: torch.device | None = None) -> None:
        """Of a group with a device for its messages; without one, this process alone."""
        self._group, self.device = group, device or torch.device("cpu")
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.members: Sequence[int] = range(self.size)
        self._over = self.alone  # nobody waits for this rank any more
        self._shared: tuple[type[Exception], ...] = ()  # kinds of errors that all raise
        self._heard: Exception | None = None  # the last of these, if it was another rank's
        self._interrupted = False  # by Ctrl-C in the middle of a step

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.size == 1

    @property
    def processes(self) -> list[int]:
        """The ranks in the world, in order."""
        if self._group is not None:
            return dist.get_process_group_ranks(self._group)
        return [dist.get_rank() if dist.is_available() and dist.is_initialized() else 0]

    @property
    def leads(self) -> bool:
        """Whether this is the rank that solves: the first one with samples."""
        return self.rank == self.members[0]

    # ---------------------------------------------------------------------------------- failures

    @contextmanager
    def together(self) -> Iterator[Ranks]:
        """All ranks leave the block with an error if one of them does.

        Raises:
            RankError: another rank has failed, or the group has.
        """
        try:
            yield self
        except BaseException as error:
            if not self._over:
                self._fail(error)
            raise
        if self._interrupted:
            raise KeyboardInterrupt

    def commit(self) -> None:
        """Wait until every rank has come here; none may fail any more."""
        if not self.alone:
            with self._step("the end"):
                self._meet(_Step.COMMIT, "the end")
                self._over = True

    @contextmanager
    def sharing(self, *kinds: type[Exception]) -> Iterator[None]:
        """Errors of these kinds on one rank are raised on all, where they may be caught.

        All ranks have to meet once more before they leave the block.
        """
        self._shared = kinds
        try:
            yield
        except kinds as error:
            if not self._over and error is not self._heard:
                kind = next(kind for kind in kinds if isinstance(error, kind))
                self._tell(f"{kind.__name__}: {error}", shared=True)
            raise
        finally:
            self._shared = ()

    def _fail(self, error: BaseException) -> None:
        """Tell the others, at what they meet for next."""
        with suppress(RankError):
            self._tell(f"{type(error).__name__}: {error}", shared=False)

    def _tell(self, text: str, *, shared: bool) -> None:
        self._over = not shared
        with self._step("a failure"):
            self._meet(_Step.FAIL, "", text.encode(), number=int(shared))

    def _raise_failures(self, heads: list[list[int]], own: bytes) -> None:
        failed = [rank for rank, head in enumerate(heads) if head[0] == _Step.FAIL]
        if not failed:
            return
        texts = self._all_gather(own if self.rank in failed else b"", [head[2] for head in heads])
        said = {rank: texts[rank].decode() for rank in failed}
        text = "; ".join(f"rank {rank} raised {what}" for rank, what in said.items())
        if not all(heads[rank][3] for rank in failed):
            self._over = True
            raise RankError(f"{text}. No rank's model has been changed")
        if self.rank not in failed:
            kind = said[failed[0]].partition(":")[0]
            kinds = (known for known in self._shared if known.__name__ == kind)
            self._heard = next(kinds, _OthersFailedError)(text)
            raise self._heard

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """A step that Ctrl-C does not tear, with typed errors for what happens to the group."""
        with interrupts_deferred() as caught:
            try:
                yield
            except SylvinitError:
                raise
            except (RuntimeError, ValueError) as error:
                self._over = True
                raise RankError(
                    f"the process group failed at {what}: {error}. A rank has ended, or is further "
                    "behind than the group's timeout (timeout= of init_process_group)"
                ) from error
        self._interrupted |= bool(caught)
        if self._interrupted and not self._over:
            raise KeyboardInterrupt

    def _meet(
        self, step: _Step, what: str, data: bytes | int = 0, number: int = 0
    ) -> list[list[int]]:
        """Who does what with how many bytes: [step, what, bytes, number] of every rank."""
        size = data if isinstance(data, int) else len(data)
        own = torch.tensor([step, zlib.crc32(what.encode()), size, number], device=self.device)
        heads = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(heads, own, group=self._group)
        found: list[list[int]] = torch.stack(heads).tolist()
        self._raise_failures(found, data if isinstance(data, bytes) else b"")
        if step is _Step.FAIL:
            return found
        first = self.members[0] if step is _Step.FOLLOW else self.rank
        for rank in self.members:
            if found[rank][:2] != found[first][:2]:
                raise RankError(
                    f"ranks {first} and {rank} are at different steps (this one at {what!r}): "
                    "every rank has to make the same calls with the same arguments, model and kind "
                    "of data"
                )
        return found

    # ---------------------------------------------------------------------------- small messages

    def total(self, what: str, number: int) -> int:
        """The sum of the numbers of all ranks."""
        return sum(self._numbers(what, number)) if not self.alone else number

    def least(self, what: str, number: int | None) -> int | None:
        """The least number of all ranks that have one; None if none has."""
        if self.alone:
            return number
        least = min(self._numbers(what, _ABSENT if number is None else number))
        return None if least == _ABSENT else least

    def _numbers(self, what: str, number: int) -> list[int]:
        with self._step(what):
            heads = self._meet(_Step.NUMBERS, what, number=number)
        return [heads[rank][3] for rank in self.members]

    def gather(self, what: str, value: Any) -> list[Any]:
        """What every member has brought, in rank order: small values that can be pickled."""
        if self.alone:
            return [value]
        data = pickle.dumps(value)
        with self._step(what):
            heads = self._meet(_Step.GATHER, what, data)
            found = self._all_gather(data, [head[2] for head in heads])
        return [pickle.loads(found[rank]) for rank in self.members]

    def agree(self, what: str, lines: list[str], remedy: str) -> None:
        """Raise RankError, with the first difference, unless the lines of all members are equal."""
        if self.alone:
            return
        digest = hashlib.blake2b("\0".join(lines).encode()).hexdigest()
        if len(set(self.gather(what, digest))) == 1:
            return
        every = self.gather(f"lines of {what}", lines)
        first = every[0]
        for rank, other in zip(self.members, every, strict=True):
            if other != first:
                place = _first_difference(first, other)
                one, two = (x[place] if place < len(x) else "nothing" for x in (first, other))
                raise RankError(
                    f"ranks have different {what}: {one!r} on rank {self.members[0]}, {two!r} on "
                    f"rank {rank}; {remedy}"
                )

    def _all_gather(self, data: bytes, sizes: list[int]) -> list[bytes]:
        longest = max(sizes)
        if longest == 0:
            return [b""] * self.size
        own = torch.zeros(longest, dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[
            : len(data)
        ]
        own = own.to(self.device)
        found = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(found, own, group=self._group)
        pairs = zip(found, sizes, strict=True)
        return [x[:size].cpu().numpy().tobytes() for x, size in pairs]

    # ---------------------------------------------------------------------------------- tensors

    def choose_members(self, members: list[int]) -> None:
        """Say, on all ranks alike, which of them have samples."""
        self.members = members

    def gather_tensors(self, what: str, x: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape and dtype, in rank order."""
        if self.alone:
            return [x]
        own = x.contiguous().reshape(-1).view(torch.uint8).to(self.device)
        # Before the step, so that the others hear of it where there is no memory.
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._step(what):
            self._meet(_Step.TENSORS, what)
            dist.all_gather(found, own, group=self._group)
        return [part.view(x.dtype).reshape(x.shape).to(x.device) for part in found]

    def reduce(
        self, what: str, pack: Callable[[], Message], merge: Callable[[Message], None]
    ) -> bool:
        """Merge what the members have into what the leading one has, in rank order.

        In pairs of neighbors, so that each sends once and none receives more than log2(members)
        messages. The order of the merges depends on nothing but the number of members. Returns
        whether nothing is missing; else a rank has failed, and says so at the next meeting.
        """
        if self.alone:
            return True
        error: BaseException | None = None
        whole = True
        with self._step(what):
            self._meet(_Step.REDUCE, what)
            place, reach = self.members.index(self.rank), 1
            while reach < len(self.members):
                # A rank that fails sends nothing, for the others not to wait, and says so then.
                if place % (2 * reach):
                    data = torch.empty(0, dtype=torch.uint8)
                    if whole:
                        try:
                            data = pack().to_bytes(self.device)
                        except Exception as failure:
                            error = failure
                    self._send(data, self.members[place - reach])
                    break
                if place + reach < len(self.members):
                    data = self._receive(self.members[place + reach])
                    whole = whole and len(data) > 0
                    if whole:
                        try:
                            merge(Message.from_bytes(data))
                        except Exception as failure:
                            error, whole = failure, False
                reach *= 2
        if error is not None:
            raise error
        return whole

    def _send(self, data: Tensor, rank: int) -> None:
        to = dist.get_global_rank(self._group, rank)
        dist.send(torch.tensor([len(data)], device=self.device), to, group=self._group)
        if len(data):
            dist.send(data, to, group=self._group)

    def _receive(self, rank: int) -> Tensor:
        source = dist.get_global_rank(self._group, rank)
        size = torch.empty(1, dtype=torch.int64, device=self.device)
        dist.recv(size, source, group=self._group)
        data = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if len(data):
            dist.recv(data, source, group=self._group)
        return data

    def broadcast(self, what: str, message: Message | None) -> Message:
        """The message of the leading rank."""
        if self.alone and message is not None:
            return message
        data = None
        if self.leads and message is not None:
            data = message.to_bytes(self.device)
        with self._step(what):
            heads = self._meet(_Step.BROADCAST, what, 0 if data is None else len(data))
            data = self._broadcast(data, heads)
        return Message.from_bytes(data) if message is None else message

    def _broadcast(self, data: Tensor | None, heads: list[list[int]]) -> Tensor:
        source = self.members[0]
        if data is None:
            data = torch.empty(heads[source][2], dtype=torch.uint8, device=self.device)
        dist.broadcast(data, dist.get_global_rank(self._group, source), group=self._group)
        return data

    def follow(self) -> Iterator[Message]:
        """Take part without samples: every broadcast message, until the caller has enough."""
        while True:
            message = None
            with suppress(_OthersFailedError), self._step("what the others do"):
                heads = self._meet(_Step.FOLLOW, "")
                step = heads[self.members[0]][0]
                if step == _Step.GATHER:
                    self._all_gather(b"", [head[2] for head in heads])
                elif step == _Step.BROADCAST:
                    message = Message.from_bytes(self._broadcast(None, heads))
            if message is not None:
                yield message


class _OthersFailedError(SylvinitError):
    """What the others share, and a rank without samples need not know."""


ALONE = Ranks()


def _first_difference(one: list[str], two: list[str]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(two)))


@contextmanager
def interrupts_deferred() -> Iterator[list[int]]:
    """Ctrl-C is written down in the block; the list is of those that came."""
    caught: list[int] = []
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or former is None:
        yield caught
        return
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, former)
