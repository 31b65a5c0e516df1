"""Look at a run's file before each of its writes, or let one of them fail: run as a module, with ``SHIM`` preloaded.

What a kill leaves is what stands between two writes, so that looking there is as good as killing there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gradlens.errors import RunFileError
from gradlens.storage import BackgroundSink, FileSink
from tests.storage import known

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static int (*before)(int grows) = 0;
void watch(int (*callback)(int)) { before = callback; }

static int refused(int file, off64_t end) {
    struct stat64 here = {0};
    if (!before) return 0;
    fstat64(file, &here);
    int error = before(S_ISREG(here.st_mode) && end > here.st_size);
    if (error) errno = error;
    return error;
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return refused(file, place + (off64_t)size) ? -1 : real(file, data, size, place);
}

ssize_t write(int file, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return refused(file, lseek64(file, 0, SEEK_CUR) + (off64_t)size) ? -1 : real(file, data, size);
}

int ftruncate64(int file, off64_t size) {
    int (*real)(int, off64_t) = dlsym(RTLD_NEXT, "ftruncate64");
    return refused(file, size) ? -1 : real(file, size);
}

#define NAMED(name, arguments, pass) \
int name arguments { \
    int (*real) arguments = dlsym(RTLD_NEXT, #name); \
    if (before) before(0); \
    return real pass; \
}
NAMED(rename, (const char *a, const char *b), (a, b))
NAMED(link, (const char *a, const char *b), (a, b))
NAMED(unlink, (const char *a), (a))
"""
Say = Callable[[int, int, int], object]
Watch = Callable[[bool], int]


def watch(act: Watch | None) -> None:
    """Let a function be called before each write; it gets whether a file grows by it, and may return an error."""
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
    watch.kept = kind(lambda grows: act(bool(grows))) if act is not None else kind()  # type: ignore[attr-defined]
    shim.watch(watch.kept)  # type: ignore[attr-defined]


def write_all(path: Path, say: Say, *, background: bool = False) -> None:
    """Write a run, resume it, and write another over it; say (generation, rows, epochs) that are safe."""

    def session(sink: FileSink, generation: int, start: int, stops: tuple[int, ...], status: str) -> None:
        used = BackgroundSink(sink) if background else sink
        failed = True
        try:
            used.open(known.header(generation))
            for stop in stops:
                known.write_rows(used, generation, start, stop)  # type: ignore[arg-type]
                used.write_state(stop / 1e3, (f"after {stop} rows",))
                used.flush()
                say(generation, stop, stop // known.EPOCH_ROWS)
                start = stop
            failed = False
        finally:
            used.close("failed" if failed else status)  # type: ignore[arg-type]

    session(FileSink(path), 0, 0, (3, 60, 71, 88, 97, 140, 150, 230), "complete")
    say(0, 160, 2)
    session(FileSink(path, resume_at=(160, 2)), 0, 160, (170, 215), "interrupted")
    session(FileSink(path, overwrite=True), 1, 0, (30,), "failed")


def look(folder: Path, every: int) -> None:
    """Check what stands before each so manieth write."""
    path, copies, safe, count = folder / "run.h5", [], [(-1, 0, 0)], 0

    def copy(_: bool) -> int:
        nonlocal count
        count += 1
        if count % every == 0:
            watch(None)
            to = folder.with_name(f"before{count}")
            shutil.copytree(folder, to)
            copies.append((to / path.name, safe[-1]))
            watch(copy)
        return 0

    watch(copy)
    write_all(path, lambda *words: safe.append(words))
    watch(None)
    for left, (generation, rows, epochs) in copies:
        known.hidden(left)
        if not left.exists():
            assert generation < 0, "the file vanished"
            continue
        os.utime(left, (1, 1))
        found = known.check_file(left)
        assert found >= (generation, rows, epochs), (left, found, safe)
        assert generation < 0 or found[0] <= generation + 1
        shutil.rmtree(left.parent)
    tell(len(copies), "of", count, "looked at")


def limit(size: int, *, kills: bool) -> None:
    """Let no file grow beyond so many bytes; to try is an error, or kills."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kills else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fail(folder: Path, after: int, *, background: bool) -> None:
    """Let the disk be full after so many writes; say what is safe, and what errors there were."""
    left = after

    def full(grows: bool) -> int:
        nonlocal left
        left -= 1
        return errno.ENOSPC if grows and left < 0 else 0

    if "LD_PRELOAD" in os.environ:
        watch(full)
    try:
        write_all(folder / "run.h5", lambda *words: tell("safe", *words), background=background)
    except RunFileError as error:
        tell("error", error)
    tell("writes", after - left)
    if "LD_PRELOAD" in os.environ:
        watch(None)


def fail_often(folder: Path, every: int) -> None:
    """Let the disk be full after ever more writes, each time in a process that then ends in the ordinary way.

    Where the shim is not loaded, files may not grow beyond ever more bytes; every fourth time, to try kills.
    """
    shim = "LD_PRELOAD" in os.environ
    after = tries = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        out, err = os.pipe(), os.pipe()
        process = os.fork()
        if not process:
            os.dup2(out[1], 1)
            os.dup2(err[1], 2)
            if not shim:
                limit(after, kills=tries % 4 == 3)
            fail(folder, after, background=tries % 2 == 1)
            return
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said, noise = map(read_all, (out, err))
        killed = not shim and tries % 4 == 3 and code == -signal.SIGXFSZ
        assert killed or (code, noise) == (0, ""), f"after {after}: exit code {code}, {noise}"
        lines = [line.split(" ", 1) for line in said.splitlines()]
        check_failed(folder / "run.h5", [text for kind, text in lines if kind == "safe"], after, killed=killed)
        errors = [text for kind, text in lines if kind == "error"]
        reason = "o space left on device" if shim else "ile too large"
        assert all(f"{folder / 'run.h5'} cannot be written: " in text and reason in text for text in errors), errors
        tries += 1
        if not (errors or killed) and (not shim or after >= int(lines[-1][1])):
            break
        after += every
    tell(tries, "full disks")


def read_all(pipe: tuple[int, int]) -> str:
    os.close(pipe[1])
    with os.fdopen(pipe[0]) as file:
        return file.read()


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def check_failed(path: Path, safe: list[str], after: int, *, killed: bool) -> None:
    """Check that what was safe is there, and nothing beside it."""
    assert known.hidden(path) == [] or killed, after
    if path.exists():
        os.utime(path, (1, 1))
        assert known.check_file(path) >= tuple(map(int, safe[-1].split() if safe else (0, 0, 0))), after
    else:
        assert not safe, after


if __name__ == "__main__":
    {"look": look, "fail": fail_often}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
