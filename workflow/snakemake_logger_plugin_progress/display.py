"""Where progress is shown: one live line of a terminal, or a plain line a minute."""

import os
import threading
import time
from collections.abc import Callable
from typing import TextIO

RED, RESET, ERASE = "\033[31m", "\033[0m", "\r\033[K"
LIVE, PLAIN = 1.0, 60.0  # seconds between two lines of progress: of a terminal, and without one


class Display:
    """Writes lines to a stream and keeps the line of progress below them.

    Args:
        stream: a terminal or not.
        line: makes the line of progress, with the lock held; "" for none.
        color: whether errors are red, on a terminal.

    Attributes:
        live: whether the stream is a terminal.
        lock: held while the stream is written to.
    """

    def __init__(self, stream: TextIO, line: Callable[[], str], *, color: bool) -> None:
        self._stream, self._line, self.lock = stream, line, threading.RLock()
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._color = color and self.live and "NO_COLOR" not in os.environ
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def start(self) -> None:
        """Show progress from now on."""
        if self._thread.ident is None:
            self._thread.start()

    def write(self, text: str, *, error: bool = False) -> None:
        """Write lines above the line of progress."""
        with self.lock:
            red, plain = (RED, RESET) if error and self._color else ("", "")
            self._put(f"{self._erase()}{red}{text}{plain}\n{self._drawn()}")

    def close(self, last: str = "") -> None:
        """Remove the line of progress and write a last line, once."""
        with self.lock:
            if self._ended.is_set():
                return
            self._ended.set()
            self._put(self._erase() + (f"{last}\n" if last else ""))

    def _repeat(self) -> None:
        while not self._ended.wait(LIVE if self.live else PLAIN):
            with self.lock:
                if self._ended.is_set():
                    return
                if self.live:
                    self._put(self._erase() + self._drawn())
                elif line := self._line():
                    self._put(f"{time.strftime('%H:%M')} {line}\n")

    def _erase(self) -> str:
        return ERASE if self.live and self._thread.ident is not None else ""

    def _drawn(self) -> str:
        """The line of progress, cut to the width of the terminal; what another program writes starts at its left."""
        if not self.live or self._ended.is_set() or self._thread.ident is None:
            return ""
        width = os.get_terminal_size(self._stream.fileno()).columns or 80  # 0 where the size is unknown
        line = self._line()
        return (line if len(line) < width else f"{line[: width - 2]}…") + "\r" if line else ""

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
