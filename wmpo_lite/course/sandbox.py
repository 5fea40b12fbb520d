"""Runs functions of students: one forked process each, with limits, on inputs that come from
standard input as JSON. What they return goes to standard output as JSON, a line for each exercise.

It knows neither right answers nor scores. Around it, `isolation` puts what the system has: no
network, no other processes, everything but one folder read-only.
"""

import functools
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

MEMORY = 1 << 30  # bytes beyond what the process holds before a student's code runs
FILE = 64 << 20  # bytes of a file
OUTCOME = 200 << 20  # bytes of the outcomes of one exercise
WALL = 8  # wall-clock time in CPU limits: a busy machine is no mistake of a student


def limit(seconds: float) -> None:
    """Limits of this process for good: CPU time, memory, file size, no new processes or threads."""
    pages = int(open("/proc/self/statm").read().split()[0]) if os.path.exists("/proc") else 0
    memory = pages * resource.getpagesize() + MEMORY
    cpu = max(1, round(seconds + sum(resource.getrusage(resource.RUSAGE_SELF)[:2])))
    for kind, value, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, FILE, FILE),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        resource.setrlimit(kind, (value, hard))


def student(task: dict, out: int) -> None:
    """In the forked process: define the function, run it on the inputs, write the outcomes."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.dup2(out, 3)
    os.closerange(4, 4096)
    from wmpo_lite.course.exercise import Raised, attempt, withhold
    from wmpo_lite.course.packing import pack, unpack
    from wmpo_lite.course.registry import EXERCISES

    exercise, cases = EXERCISES[task["name"]], unpack(task["cases"])
    limit(exercise.limit)
    try:
        space = {"__name__": "submission"}
        with withhold(exercise.withheld):
            exec(compile(task["source"], "submission", "exec"), space)
            outcomes = attempt(exercise, space[exercise.function], cases)
    except BaseException as error:
        outcomes = [Raised(type(error).__name__, str(error)[:300])] * len(cases)
    data = memoryview(json.dumps([pack(outcome) for outcome in outcomes]).encode())
    while data:
        data = data[os.write(3, data) :]


def run(task: dict, seconds: float) -> dict:
    """{"outcomes": [...]} of a task, or {"ended": how} when its process gave none."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            student(task, write)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    parts, size, end, late = [], 0, time.monotonic() + WALL * seconds + 5, False
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, end - time.monotonic()))
        part = os.read(read, 1 << 16) if ready else b""
        late, size = not ready, size + len(part)
        if not part or size > OUTCOME:
            break
        parts.append(part)
    os.close(read)
    if late or size > OUTCOME:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    with suppress(OSError):
        os.killpg(child, signal.SIGKILL)  # what it may have started
    spent = used.ru_utime + used.ru_stime
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if late or ended == signal.SIGXCPU or ended and spent >= seconds:
        return {"ended": "time"}
    if ended:
        return {"ended": f"signal {signal.Signals(ended).name}"}
    if not parts or size > OUTCOME:
        return {"ended": "too much output" if parts else "it left without a result"}
    try:
        return {"outcomes": json.loads(b"".join(parts))}
    except ValueError:
        return {"ended": "its result cannot be read"}


# Remounts everything read-only but the folder, then gives up the right to undo it.
READ_ONLY = """
mount --bind "$0" "$0"
awk '{ sub(/^rw/, "ro", $6); print $5, $6 }' /proc/self/mountinfo | while read -r point options; do
  [ "$point" = "$0" ] || mount -o "remount,bind,$options" "$point" 2>/dev/null || true
done
mount -t proc proc /proc
cd "$0"
if command -v setpriv >/dev/null; then set -- setpriv --bounding-set -all --inh-caps -all "$@"; fi
exec "$@"
"""


def wrapped(tool: str, folder: str, arguments: list[str]) -> list[str]:
    """A command line that runs `arguments` under `tool`, with `folder` alone to write into."""
    if tool == "bwrap":
        places = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        own = ["--bind", folder, folder, "--chdir", folder, "--unshare-all", "--die-with-parent"]
        return ["bwrap", *places, *own, "--new-session", *arguments]
    if tool == "unshare":
        kinds = ["--map-root-user", "--net", "--mount", "--pid", "--fork", "--ipc", "--kill-child"]
        return ["unshare", *kinds, "sh", "-c", READ_ONLY, folder, *arguments]
    return arguments


@functools.cache
def isolation() -> tuple[str, str]:
    """(tool, sentence): 'bwrap', 'unshare' or '', the first that was tried and holds, and what it
    does and does not stop.
    """
    with tempfile.TemporaryDirectory() as inside, tempfile.TemporaryDirectory() as outside:
        script = f"! (echo > {outside}/x) 2>/dev/null && echo > {inside}/x"
        for tool in ("bwrap", "unshare"):
            probe = wrapped(tool, inside, ["sh", "-c", script])
            if shutil.which(tool) and not subprocess.run(probe, capture_output=True).returncode:
                return tool, (
                    f"Submissions run under {tool}: no network, everything read-only but a folder"
                    " of their own; they can read what you can read."
                )
    return "", (
        "Neither bubblewrap nor user namespaces work here: CPU time, memory and file sizes are"
        " limited, but a submission can use the network and write wherever you can (install"
        " bubblewrap to stop that)."
    )


def command(folder: str) -> list[str]:
    """The command line of a sandbox that writes into `folder` alone, as far as that goes here."""
    python = [sys.executable, "-P", "-B", "-m", "wmpo_lite.course.sandbox"]
    return wrapped(isolation()[0], folder, python)


def main() -> None:
    """Run the tasks from standard input, one after the other."""
    import torch

    from wmpo_lite.course.registry import EXERCISES

    torch.set_num_threads(1)
    for task in json.load(sys.stdin):
        found = run(task, EXERCISES[task["name"]].limit)
        print(json.dumps({"name": task["name"], **found}), flush=True)


if __name__ == "__main__":
    main()
