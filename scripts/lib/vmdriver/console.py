# SPDX-License-Identifier: BSD-2-Clause
"""A VM's serial console: read with a deadline, logged, and watched for trouble."""

import codecs
import os
import re
import selectors
import time

from .errors import Failure, Timeout, Trouble

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78cDEHM])|\r|\x0f|\0")
# Where the cursor jumps, another line begins.
JUMP = re.compile(r"\x1b\[[\d;]*H")
# An escape sequence that is not complete yet.
ESCAPE_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[()])?$")
# How long a backtrace may take to come out after a panic.
LAST_WORDS = 20


def plain(text):
    """Text without its escape sequences."""
    return ESCAPES.sub("", JUMP.sub("\n", text))


class Console:
    """The console of a process whose standard input and output are the serial line."""

    def __init__(self, process, log, watcher, deadline, on_line=lambda line: None):
        self.process = process
        self.log = log
        self.watcher = watcher
        self.deadline = deadline
        self.on_line = on_line
        self.tail = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._raw = ""
        self._text = ""
        self._line = ""
        self._fd = process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._fd, selectors.EVENT_READ)

    def send(self, text):
        """Type something."""
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except OSError as error:
            raise Failure(f"the VM's console is closed: {error}") from error

    def expect(self, patterns, seconds, what, tick=lambda: None):
        """Wait for one of the patterns (a dict of names) in what has not been
        looked at yet; its name and the match. The kernel's trouble, the end of
        QEMU and the deadline raise."""
        until = min(self.deadline, time.monotonic() + seconds)
        while True:
            found = [
                (match.start(), name, match)
                for name, pattern in patterns.items()
                if (match := re.search(pattern, self._text, re.MULTILINE))
            ]
            if found:
                _, name, match = min(found, key=lambda each: each[0])
                self._text = self._text[match.end():]
                return name, match
            # Only the line that is not complete can still match.
            self._text = self._text[-4096:]
            left = until - time.monotonic()
            if left <= 0:
                raise Timeout(f"{what} has not come to an end in time{self._last()}")
            if not self._read(min(left, 1.0)):
                raise Failure(f"QEMU ended while {what}{self._last()}")
            if self.watcher.fatal:
                self._listen(LAST_WORDS)
                raise Trouble("the kernel stopped")
            tick()

    def drain(self, seconds):
        """Read on until QEMU ends, or for some seconds. Whether it has ended."""
        until = min(self.deadline, time.monotonic() + seconds)
        while (left := until - time.monotonic()) > 0:
            if not self._read(min(left, 1.0)):
                return True
        return False

    def _listen(self, seconds):
        until = min(self.deadline, time.monotonic() + seconds)
        while (left := until - time.monotonic()) > 0:
            # The debugger's prompt, or a restart, is the end of it.
            if self._line.startswith("db>") or not self._read(min(left, 1.0)):
                break
        if self._line:
            self.watcher.feed(self._line)

    def _read(self, seconds):
        """Take what comes within some seconds. Whether QEMU is still there."""
        if not self._selector.select(seconds):
            return True
        data = os.read(self._fd, 65536)
        if not data:
            return False
        self.take(data)
        return True

    def take(self, data):
        """What the VM has written; a character or an escape sequence may be cut in two."""
        self._raw += self._decoder.decode(data)
        begun = ESCAPE_BEGUN.search(self._raw)
        at = begun.start() if begun else len(self._raw)
        text, self._raw = plain(self._raw[:at]), self._raw[at:]
        self.log.write(text)
        self.log.flush()
        self._text += text
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self.watcher.feed(line)
            self.on_line(line)
            if line.strip():
                self.tail = self.tail[-9:] + [line]

    def _last(self):
        lines = self.tail + ([self._line] if self._line else [])
        return "; the last lines were:\n" + "\n".join(lines) if lines else "; it has said nothing"
