"""One training at a time in ``--save``: the first rank holds the folder's claim from before anything is read there.

See ``jobs/claims.py``. A second run is refused in one line. It waits where the first seems to be gone, until that has
given a sign of life or its claim is stale, and where the first is an earlier attempt of the same job, which may still
be writing its last checkpoint.
"""

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

from megatron_mixcpt.errors import CheckpointError, ConfigError, MixCPTError
from megatron_mixcpt.jobs import claims
from megatron_mixcpt.jobs.agreement import agreement
from megatron_mixcpt.jobs.claims import Claim, ClaimLostError, Found, Holder, age, described
from megatron_mixcpt.jobs.whole_outputs import make_folder
from megatron_mixcpt.rank_exit import at_the_end, fail_from_a_thread
from megatron_mixcpt.terminal import say

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # the training itself answers them later (engine/preemption.py)
_POLL_S = 0.5
# Of ranks that wait for the first one, which waits for an earlier run.
_PATIENCE = timedelta(hours=1)
# For the other ranks to read why the first one ends, and with it perhaps the store that they read it from.
_MOST_S = 5.0

_KEY = "mixcpt claim"

_held: tuple[Claim, str] | None = None


@contextlib.contextmanager
def only_run_in(save: str | None, *, dry_run: bool) -> Iterator[None]:
    """Inside, no other training writes into ``save``. Every rank must enter, after torchrun's variables are set.

    Args:
        save: the checkpoint folder, made where it is missing; None: nothing is claimed.
        dry_run: claim nothing, and say on the first rank who holds the folder.

    Raises:
        ConfigError: another run is writing there, or the folder cannot be written. On every rank.
    """
    if save is None or dry_run:
        if save is not None and _rank() == 0 and (found := claims.found_in(Path(save))) and not found.is_stale:
            say(f"note: --save {save} is in use now: {_who(found)}")
        yield
        return
    with contextlib.ExitStack() as held:
        _on_first_rank(lambda: held.enter_context(_holding(save)), held)
        yield


def check_still_held() -> None:
    """On the first rank before anything is written that has a final name.

    Raises:
        CheckpointError: the claim is another run's by now.
    """
    if _held is not None:
        claim, save = _held
        try:
            claim.refresh()
        except ClaimLostError as lost:
            raise _lost(save, lost) from lost


@contextlib.contextmanager
def _holding(save: str) -> Iterator[None]:
    """The claim, refreshed by a thread; it is released however this process ends, unless the kernel kills it."""
    global _held
    is_new = not Path(save).exists()
    claim, over = _take_or_wait(save), threading.Event()
    keeper = threading.Thread(target=_keep, args=(claim, save, over), daemon=True)
    owner = os.getpid()

    def release() -> None:
        if os.getpid() == owner and not over.is_set():
            over.set()
            claim.release()
            if is_new:
                with contextlib.suppress(OSError):  # something is in it
                    Path(save).rmdir()

    _held = claim, save
    keeper.start()
    with at_the_end(release), _released_by_signals(release):
        try:
            yield
        finally:
            release()
            keeper.join(1.0)
            _held = None


def _take_or_wait(save: str) -> Claim:
    me, folder = Holder.this_process(), Path(save)
    deadline, said = time.monotonic() + claims.STALE_AFTER_S, False
    while True:
        try:
            make_folder(folder)
            found = claims.take(folder, me)
        except OSError as error:
            raise ConfigError(f"--save {save} cannot be written ({error}): give a folder that can") from error
        if isinstance(found, Claim):
            return found
        precedes = found.holder is not None and me.follows(found.holder) and time.monotonic() < deadline
        if not precedes and found.silent_s <= claims.SILENT_AFTER_S:
            raise ConfigError(
                f"--save {save}: another run is writing there, {_who(found)}; wait for its end, or give another --save"
            )
        if not said:
            what = "an earlier attempt of this job" if precedes else "another run, which may be gone"
            limit = f"at most {age(claims.STALE_AFTER_S)}"
            say(f"waiting for {what}, to leave --save {save}, {limit}: {_who(found)}")
            said = True
        time.sleep(_POLL_S)


def _who(found: Found) -> str:
    holder = described(found.holder) if found.holder else "which has just started"
    return f"{holder}, last sign of life {age(found.silent_s)} ago"


def _keep(claim: Claim, save: str, over: threading.Event) -> None:
    """Refresh the claim until ``over``; end this rank where another run has taken it."""
    while not over.wait(claims.REFRESH_S):
        try:
            claim.refresh()
        except ClaimLostError as lost:
            if over.is_set():  # released meanwhile
                return
            fail_from_a_thread(_lost(save, lost))


def _lost(save: str, lost: ClaimLostError) -> CheckpointError:
    return CheckpointError(
        f"another run has taken over --save {save} ({lost}), because this one gave no sign of life for "
        f"{age(claims.STALE_AFTER_S)}, as where it was suspended; it ends here and writes nothing more there"
    )


@contextlib.contextmanager
def _released_by_signals(release: Callable[[], None]) -> Iterator[None]:
    """Until the training answers signals itself, one ends this process as ever, but with the claim released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        release()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        raise SystemExit(128 + number)  # not reached

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)


def _on_first_rank(act: Callable[[], None], held: contextlib.ExitStack) -> None:
    """Call ``act`` on the first rank alone; its :class:`MixCPTError` is raised on every one."""
    if int(os.environ["WORLD_SIZE"]) == 1:
        act()
    elif dist.is_initialized():
        with agreement() as ranks:
            ranks.from_first(act)
    else:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=_PATIENCE)))
        _through(store, act)
        held.callback(lambda: store)  # this process may serve it to ranks that have not read it yet


def _through(store: dist.Store, act: Callable[[], None]) -> None:
    """Ask and answer through torchrun's store: the process groups come later, from flags that are not read yet.

    The store outlives an attempt, and hosts count their attempts differently. So each rank asks under a name that is
    its own, and the first rank answers whoever asks until all have met in a process group.
    """
    if _rank() > 0:
        question = uuid.uuid4().hex
        store.set(f"{_KEY} question {_rank()}", question)
        store.add(f"{_KEY} questions", 1)
        refusal = store.get(f"{_KEY} answer {question}").decode()
        store.set(f"{_KEY} read {question}", "")
        if refusal:
            raise ConfigError(refusal)
        return
    try:
        act()
    except MixCPTError as error:
        _answer(store, str(error), time.monotonic() + _MOST_S)
        raise
    threading.Thread(target=_answer_until_all_met, args=(store,), daemon=True).start()


def _answer_until_all_met(store: dist.Store) -> None:
    with contextlib.suppress(RuntimeError):  # the store has ended, and the ranks with it
        _answer(store, "", None)


def _answer(store: dist.Store, answer: str, deadline: float | None) -> None:
    """Answer the other ranks until the deadline or until all have read it; without a deadline until a group is made.

    The first rank may serve the store, and then must not end before.
    """
    ranks, answered, seen = range(1, int(os.environ["WORLD_SIZE"])), dict[int, str](), -1
    while time.monotonic() < deadline if deadline else not dist.is_initialized():
        if (asked := store.add(f"{_KEY} questions", 0)) != seen:
            seen = asked
            for rank in (rank for rank in ranks if store.check([f"{_KEY} question {rank}"])):
                answered[rank] = store.get(f"{_KEY} question {rank}").decode()
                store.set(f"{_KEY} answer {answered[rank]}", answer)
        if deadline and len(answered) == len(ranks):
            if all(store.check([f"{_KEY} read {question}"]) for question in answered.values()):
                return
        time.sleep(0.05)


def _rank() -> int:
    return int(os.environ["RANK"])
