"""A second process that switches the torque off when the first one is killed or hangs.

Nothing inside an interpreter that stands still (killed, swapped out, stuck in native code that
never gives Python back) can speak to the servos, which go on holding. So whoever powers an arm
tells this process again and again that all is well, and once that stops it opens the port, switches
the torque off, and ends the other for good, so that it cannot wake up and move on.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

from wmpo_lite.common.errors import UserError

# s of silence that a busy machine may cause; the arm's own watchdog is four times as fast
PATIENCE = 2.0
START = 20.0  # s that the process may take to begin


class Lifeline:
    """Watches this process on behalf of the arm at `port` with the servos `ids`, from `start` to
    `end`. Without pipes that can be waited for, and ports that two processes can open (Windows),
    there is none, and `start` returns False.
    """

    def __init__(self, port: str, ids, patience: float = PATIENCE):
        self.port, self.ids, self.patience = str(port), [str(int(i)) for i in ids], patience
        self._process, self._lock = None, threading.Lock()

    def start(self) -> bool:
        """Begin to watch; True once somebody does. UserError if the process does not come up."""
        if os.name != "posix":
            return False
        module = [sys.executable, "-m", "wmpo_lite.arms.lifeline"]
        command = [*module, self.port, str(self.patience), *self.ids]
        # A session of its own: Ctrl-C at the terminal is for the process that is watched.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        os.set_blocking(self._process.stdin.fileno(), False)
        out = self._process.stdout
        if not select.select([out], [], [], START)[0] or not out.readline():
            self.end()
            raise UserError(
                "the process that switches the arm off when this one hangs could not be started;"
                " try again, and run `wmpo-lite doctor` if it stays so"
            )
        return True

    def beat(self) -> None:
        """All is well. Never waits, never raises."""
        self._say(b".")

    def end(self) -> None:
        """The arm is off already, nobody needs to watch. Safe to call twice."""
        self._say(b"q")
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _say(self, what: bytes) -> None:
        with self._lock:
            if self._process is not None:
                with suppress(OSError, ValueError):
                    os.write(self._process.stdin.fileno(), what)


def watch(port: str, patience: float, ids: list[int], watched: int) -> None:
    """Read signs of life from standard input until 'q'; when they stop, torque off and an end to
    the process `watched`.
    """
    from wmpo_lite.arms.bus import BusError, FeetechBus

    print("watching", flush=True)
    while select.select([0], [], [], patience)[0]:
        said = os.read(0, 4096)
        if b"q" in said:
            return
        if not said:  # the other end of the pipe is gone
            break
    bus = FeetechBus(port, ids, exclusive=False)
    for _ in range(20):
        try:
            bus.open()
            bus.torque(False)
            break
        except (BusError, UserError):
            # both ends may have spoken at once, or somebody pulls the cable
            time.sleep(0.05)
        finally:
            bus.close()
    with suppress(OSError):
        if os.getppid() == watched:
            os.kill(watched, signal.SIGKILL)


if __name__ == "__main__":
    watch(sys.argv[1], float(sys.argv[2]), [int(i) for i in sys.argv[3:]], os.getppid())
