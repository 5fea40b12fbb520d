"""The emergency stop of whoever sits at the terminal: space or q, Ctrl-C, a closed terminal, a
kill.
"""

import contextlib
import os
import queue
import select
import signal
import sys
import threading

STOP_KEYS = " q"


class Keys:
    """Reads single keys from a terminal in a thread of its own while the context is open: space and
    q call `on_stop(reason)`, all others wait in `get`.

    stream: a file of a terminal, default standard input; anything else than a terminal, and that of
    Windows, is left alone, and `live` is False. on_stop may be set later.
    """

    def __init__(self, on_stop=None, stream=None):
        self.on_stop = on_stop
        self._stream = stream or sys.stdin
        self._keys = queue.SimpleQueue()
        self._ended = threading.Event()
        self.live = False

    def __enter__(self):
        # a closed or replaced standard input
        with contextlib.suppress(AttributeError, ValueError, OSError):
            self.live = os.isatty(self._stream.fileno())
        try:
            import termios
            import tty
        except ImportError:  # Windows: Ctrl-C is the way to stop there
            self.live = False
        if self.live:
            self._fd = self._stream.fileno()
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)  # Ctrl-C stays Ctrl-C
            self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception):
        if self.live:
            import termios

            self._ended.set()
            self._thread.join(timeout=1)
            with contextlib.suppress(termios.error):  # the terminal may be gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            self.live = False

    def get(self, timeout: float | None = None) -> str | None:
        """The next key that is no stop key, or None after `timeout` seconds (0: at once)."""
        try:
            return self._keys.get(timeout=timeout) if timeout != 0 else self._keys.get_nowait()
        except queue.Empty:
            return None

    def clear(self) -> None:
        """Forget what was pressed so far."""
        while self.get(0) is not None:
            pass

    def _read(self):
        while not self._ended.is_set():
            try:
                ready, _, _ = select.select([self._fd], [], [], 0.05)
                data = os.read(self._fd, 64) if ready else None
            except OSError:
                data = b""
            if data == b"":  # nobody is left who could press a key
                if self.on_stop:
                    self.on_stop("the terminal was closed")
                return
            for key in (data or b"").decode(errors="replace"):
                if key in STOP_KEYS:
                    if self.on_stop:
                        self.on_stop("stopped by the e-stop key")
                    self._keys.put("q")
                else:
                    self._keys.put(key)


@contextlib.contextmanager
def signals_interrupt():
    """Inside, a polite kill (SIGTERM) and a closed terminal (SIGHUP) act as Ctrl-C does: the arm is
    stopped, the episode saved, the torque switched off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None))
        if number is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
