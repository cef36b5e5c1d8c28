"""Records what processes do to a folder, from their system calls: whatever language writes, and children as well.

``strace`` attaches to the processes; it needs no rights beyond those of a debugger. What it saw is replayed and
compared with the folder itself, so that a call which is not understood here, or a file written through memory, is an
error.
"""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.disk import ROOT, Change, Data, Disk, Flush, Names, Recording, read_tree

CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,rename,renameat,renameat2,unlink,unlinkat,rmdir,"
    "mkdir,mkdirat,link,linkat,symlink,symlinkat,truncate,ftruncate,fallocate,fsync,fdatasync,dup,dup2,dup3,fcntl,"
    "sendfile,copy_file_range"
)
_LINE = re.compile(r"(\d+) +(?:<\.\.\. \w+ resumed>)?(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(<[^>]*>)?")
_DESCRIPTOR = re.compile(r"(\d+|AT_FDCWD)<([^>]*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def is_missing() -> bool:
    """Whether there is no strace here."""
    return shutil.which("strace") is None


class Quiet(NamedTuple):
    """A function whose process writes what it prints to a file."""

    function: Callable[[], None]
    log: Path

    def __call__(self) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        self.function()


def record(functions: Sequence[Callable[[], None]], root: Path, log: Path) -> Recording:
    """Run each function in a forked process of its own, all at once, and record what happens in ``root``.

    Args:
        functions: one for each process.
        root: an existing folder, an absolute path without links.
        log: where strace writes.

    Raises:
        RuntimeError: a process failed, or what was recorded is not what the folder holds.
    """
    reader = _Reader(root)
    gate, opener = os.pipe()
    processes = [_start(function, gate) for function in functions]
    attached = [argument for process in processes for argument in ("-p", str(process))]
    options = ["-f", "-y", "-xx", "-s", str(1 << 28), "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log)]
    with subprocess.Popen(["strace", *options, *attached], stderr=subprocess.PIPE, text=True) as strace:
        said = [strace.stderr.readline() for _ in processes]
        os.write(opener, bytes(len(processes)))
        failed = [process for process in processes if os.waitpid(process, 0)[1]]
        strace.communicate()
    os.close(gate), os.close(opener)
    if not all("attached" in line for line in said):
        raise RuntimeError(f"strace cannot attach: {said}")
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(processes)} recorded processes failed")
    with open(log, encoding="ascii") as lines:
        recording = reader.read(lines)
    _check(recording, root)
    return recording


def run(functions: Sequence[Callable[[], None]]) -> list[int]:
    """Run each function in a forked process of its own, all at once; returns the exit codes."""
    gate, opener = os.pipe()
    processes = [_start(function, gate) for function in functions]
    os.write(opener, bytes(len(processes)))
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    os.close(gate), os.close(opener)
    return codes


def _start(function: Callable[[], None], gate: int) -> int:
    """Fork a process that waits for a byte, then runs ``function``."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.read(gate, 1)
        function()
        for thread in threading.enumerate():  # as Python's own way out does
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        code = 0
    except SystemExit as exit:
        code = int(bool(exit.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _check(recording: Recording, root: Path) -> None:
    replayed, actual = recording.replayed(recording.changes).tree(), read_tree(root)
    wrong = sorted(name for name in replayed.keys() | actual.keys() if replayed.get(name, ()) != actual.get(name, ()))
    if wrong:
        raise RuntimeError(f"{len(wrong)} paths are not as recorded, {wrong[0]} among them: a call is not understood")


class _Reader:
    """Turns strace's lines into changes. Paths are those of the moment, so it keeps track of all names."""

    def __init__(self, root: Path) -> None:
        self.root = f"{root}/"
        self.is_folder: dict[int, bool] = {ROOT: True}
        self.now = Disk()
        self.changes: list[Change] = []
        self._offsets: dict[tuple[int, int], int | None] = {}  # None: at the end
        for path in sorted(root.rglob("*")):
            self._create(str(path), path.is_dir())
            if path.is_file():
                self._do(Data(self._node(str(path)), 0, path.read_bytes()))
        self.before = Disk({n: bytearray(c) for n, c in self.now.files.items()})
        self.before.folders = {node: dict(names) for node, names in self.now.folders.items()}
        self.changes.clear()

    def read(self, lines: Iterator[str]) -> Recording:
        begun: dict[str, str] = {}
        for line in lines:
            process, text = _LINE.match(line).groups()
            if text.endswith("<unfinished ...>"):
                begun[process] = text.removesuffix("<unfinished ...>").rstrip()
                continue
            call = _CALL.match(begun.pop(process, "") + text.lstrip())
            if call and int(call[3]) >= 0:
                self._call(call[1], call[2], int(call[3]))
        return Recording(self.before, self.changes, self.is_folder)

    def _call(self, name: str, arguments: str, result: int) -> None:
        descriptors = [
            (int(fd) if fd != "AT_FDCWD" else -1, _text(path)) for fd, path in _DESCRIPTOR.findall(arguments)
        ]
        strings = _STRING.findall(arguments)
        if name in ("open", "openat", "creat"):
            self._open(_paths(descriptors, strings)[0], arguments if name != "creat" else "O_CREAT|O_TRUNC", result)
        elif name in ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"):
            self._written(name, arguments, descriptors, strings, result)
        elif name == "lseek":
            self._seek(descriptors[0], result)
        elif name in ("dup", "dup2", "dup3") or (name == "fcntl" and "F_DUPFD" in arguments):
            node = self._node(descriptors[0][1])
            if node is not None:
                self._offsets[node, result] = self._offsets.get((node, descriptors[0][0]), 0)
        elif name in ("fsync", "fdatasync"):
            node = self._node(descriptors[0][1])
            if node is not None:
                self._do(Flush(node))
        elif name in ("truncate", "ftruncate", "fallocate"):
            self._resize(name, descriptors, strings, arguments)
        elif name != "fcntl":
            self._name(name, _paths(descriptors, strings), arguments)

    def _open(self, path: str, flags: str, descriptor: int) -> None:
        if "O_TMPFILE" in flags or not path.startswith(self.root):
            return
        if self._node(path) is None and "O_CREAT" in flags:
            self._create(path, False)
        node = self._node(path)
        if node is None or self.is_folder[node]:
            return
        if "O_TRUNC" in flags and self.now.files[node]:
            self._do(Data(node, 0, None))
        self._offsets[node, descriptor] = None if "O_APPEND" in flags else 0

    def _written(self, name: str, arguments: str, descriptors: list, strings: list[str], count: int) -> None:
        target = 1 if name == "copy_file_range" else 0
        descriptor, path = descriptors[target]
        node = self._node(path)
        if node is None or not count:
            return
        if name in ("sendfile", "copy_file_range"):
            content = self._copied(name, arguments, descriptors[1 - target], count)
        else:
            content = b"".join(map(_bytes, strings))[:count]
        own_offset = self._offsets.get((node, descriptor), 0)
        if name.startswith("pw"):
            offset = int(arguments.rsplit(",", 2 if name == "pwritev2" else 1)[1])
        else:
            offset = len(self.now.files[node]) if own_offset is None else own_offset
            if own_offset is not None:
                self._offsets[node, descriptor] = offset + count
        self._do(Data(node, offset, content))

    def _copied(self, name: str, arguments: str, source: tuple[int, str], count: int) -> bytes:
        node = self._node(source[1])
        data = bytes(self.now.files[node]) if node is not None else Path(source[1]).read_bytes()
        given = re.search(r"\[(\d+)\]", arguments)  # the offset, where one is given
        start = int(given[1]) if given else self._offsets.get((node, source[0]), 0) if node is not None else 0
        return data[start : start + count]

    def _seek(self, descriptor: tuple[int, str], offset: int) -> None:
        node = self._node(descriptor[1])
        if node is not None and self._offsets.get((node, descriptor[0]), 0) is not None:
            self._offsets[node, descriptor[0]] = offset

    def _resize(self, name: str, descriptors: list, strings: list[str], arguments: str) -> None:
        node = self._node(descriptors[0][1] if descriptors else _text(strings[0]))
        numbers = [int(number) for number in re.findall(r", (\d+)", arguments)]
        if node is None:
            return
        size = sum(numbers[-2:]) if name == "fallocate" else numbers[-1]
        if name != "fallocate" or size > len(self.now.files[node]):
            self._do(Data(node, size, None))

    def _name(self, call: str, paths: list[str], arguments: str) -> None:
        inside = [path for path in paths if path.startswith(self.root)]
        if not inside:
            return
        if call.startswith("mkdir"):
            self._create(inside[0], True)
        elif call.startswith(("unlink", "rmdir")):
            self._do(Names((self._named(inside[0], None),)))
        elif call.startswith("rename") and len(inside) == 2 and "RENAME_EXCHANGE" not in arguments:
            source, target = inside
            self._do(Names((self._named(source, None), self._named(target, self._node(source)))))
        elif call.startswith("link") and len(inside) == 2:
            self._do(Names((self._named(inside[1], self._node(inside[0])),)))
        else:
            raise RuntimeError(f"{call} of {paths} is not understood")

    def _create(self, path: str, is_folder: bool) -> None:
        node = len(self.is_folder)
        self.is_folder[node] = is_folder
        (self.now.folders if is_folder else self.now.files)[node] = {} if is_folder else bytearray()
        self._do(Names((self._named(path, node),)))

    def _named(self, path: str, node: int | None) -> tuple[int, str, int | None]:
        folder, _, name = path.rpartition("/")
        return self._node(folder), name, node

    def _node(self, path: str) -> int | None:
        if f"{path}/" == self.root:
            return ROOT
        return self.now.find(path.removeprefix(self.root).split("/")) if path.startswith(self.root) else None

    def _do(self, change: Change) -> None:
        self.changes.append(change)
        self.now.apply(change)


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return os.fsdecode(_bytes(escaped)) if escaped.startswith("\\x") else escaped


def _paths(descriptors: list[tuple[int, str]], strings: list[str]) -> list[str]:
    """The paths that a call names, absolute: relative ones are below the folder named before each."""
    names = [_text(name) for name in strings]
    folders = [path for _, path in descriptors] or [os.getcwd()] * len(names)
    return [os.path.normpath(os.path.join(folders[min(i, len(folders) - 1)], name)) for i, name in enumerate(names)]
