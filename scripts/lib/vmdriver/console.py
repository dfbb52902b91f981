# SPDX-License-Identifier: BSD-2-Clause
"""A VM's serial console: read with a deadline, logged, and watched for trouble."""

import codecs
import os
import re
import selectors
import time

from .errors import Failure, Timeout, Trouble

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78cDEHM])|\r|\x0f|\0")
# A jump of the cursor begins a new line.
JUMP = re.compile(r"\x1b\[[\d;]*H")
# An incomplete escape sequence.
ESCAPE_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[()])?$")
# Seconds for the backtrace after a panic.
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
        """Type text."""
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except OSError as error:
            raise Failure(f"the VM's console is closed: {error}") from error

    def expect(self, patterns, seconds, what, tick=lambda: None):
        """Wait for one of the patterns, a dict by name, in the text that no earlier call
        has consumed. Returns the name and the match. Raises on a panic, at the end of
        QEMU and at the deadline."""
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
            # Only the incomplete line can still match.
            self._text = self._text[-4096:]
            left = until - time.monotonic()
            if left <= 0:
                raise Timeout(f"timeout while {what}{self._last()}")
            if not self._read(min(left, 1.0)):
                raise Failure(f"QEMU ended while {what}{self._last()}")
            if self.watcher.fatal:
                self._listen(LAST_WORDS)
                raise Trouble("the kernel stopped")
            tick()

    def drain(self, seconds):
        """Read until QEMU ends or the seconds are over. True: QEMU has ended."""
        until = min(self.deadline, time.monotonic() + seconds)
        while (left := until - time.monotonic()) > 0:
            if not self._read(min(left, 1.0)):
                return True
        return False

    def _listen(self, seconds):
        until = min(self.deadline, time.monotonic() + seconds)
        while (left := until - time.monotonic()) > 0:
            # The backtrace ends at the debugger's prompt or at a restart.
            if self._line.startswith("db>") or not self._read(min(left, 1.0)):
                break
        if self._line:
            self.watcher.feed(self._line)

    def _read(self, seconds):
        """Read once, waiting at most this many seconds. False: QEMU has ended."""
        if not self._selector.select(seconds):
            return True
        data = os.read(self._fd, 65536)
        if not data:
            return False
        self.take(data)
        return True

    def take(self, data):
        """Process output. It may begin or end inside a character or an escape sequence."""
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
        return "; the last lines were:\n" + "\n".join(lines) if lines else "; the console is empty"
