"""Runs one program that a model wrote, isolated from the machine; a script that ``code_runner.py`` starts.

    python -I code_jail.py SECONDS MEMORY_BYTES FILE_BYTES < program.py

The working folder, which should be a new one, is the only place that the program can write to. It runs in namespaces of
its own (user, network, processes, mounts): it has no network, sees no other process and no ``/proc``, where other
programs' environments can be read, and when its time is over it ends with everything that it started. It is executed
after a second ``exec``, which takes away the capabilities with which the namespaces were made.

Exit status: 0 where the program ran to its end without an exception, 1 where it did not, ``NO_ISOLATION`` where this
machine grants no such namespaces; the program has not run then. Linux only; the standard library alone.
"""

import ctypes
import os
import resource
import signal
import sys
import time

NO_ISOLATION = 125
PASSED = b"passed"
MAX_PROCESSES = 64

# From <sched.h>'s callers and <linux/mount.h>.
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = -100, 0x8000, 442
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MOUNT_ATTR_RDONLY = 1
PR_SET_NO_NEW_PRIVS = 38


def main() -> int:
    """Make the namespaces, start the program as their first process, wait for it or end it."""
    seconds, memory_bytes, file_bytes = (int(argument) for argument in sys.argv[1:4])
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET | os.CLONE_NEWPID | os.CLONE_NEWNS)
        confine_files(os.getcwd())
    except OSError as error:
        print(error, file=sys.stderr)
        return NO_ISOLATION
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        limit(seconds, memory_bytes, file_bytes)
        os.set_inheritable(sender, True)
        os.execv(sys.executable, [sys.executable, "-I", __file__, "--inside", str(sender)])
    os.close(sender)
    ended_well = wait(child, time.monotonic() + seconds)
    return 0 if ended_well and os.read(receiver, len(PASSED)) == PASSED else 1


def confine_files(folder: str) -> None:
    """Make everything but ``folder`` read-only, and hide ``/proc``. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def set_attributes(path: str, added: int, cleared: int) -> None:
        attributes = (ctypes.c_uint64 * 4)(added, cleared, 0, 0)
        size = ctypes.sizeof(attributes)
        check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, size))

    empty = os.path.join(folder, ".empty")
    os.mkdir(empty)
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    check(libc.mount(folder.encode(), folder.encode(), None, MS_BIND, None))
    check(libc.mount(empty.encode(), b"/proc", None, MS_BIND, None))
    set_attributes("/", MOUNT_ATTR_RDONLY, 0)
    set_attributes(folder, 0, MOUNT_ATTR_RDONLY)
    os.chdir(folder)  # as mounted now
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def limit(seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Set this process's limits, and take its input and output away."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, MAX_PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def wait(child: int, deadline: float) -> bool:
    """Whether the child exits with status 0 before ``deadline``; otherwise it is killed, and all of its namespace."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def inside(sender: int) -> None:
    """Execute the program; write to the pipe once it has ended."""
    program = sys.stdin.buffer.read()
    try:
        exec(compile(program, "program", "exec"), {})
    except BaseException:  # SystemExit too: the program did not come to its end
        os._exit(1)
    os.write(sender, PASSED)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        inside(int(sys.argv[2]))
    sys.exit(main())
