# SPDX-License-Identifier: BSD-2-Clause
"""Finds panics and lock errors in the lines of a kernel's console."""

import re

# The kernel stops; the lines that follow are the backtrace. A kernel message may
# follow the incomplete line of a program, so that only the debugger's prompt is
# matched at the beginning of a line.
FATAL = re.compile(r"\bpanic: |\bFatal (?:double fault|trap \d+)|\bKDB: enter: |^db> ")
# Errors after which the kernel goes on.
COMPLAINT = re.compile(
    r"\block order reversal:|\bacquiring (?:duplicate|blockable sleep) lock|"
    r"\bnon-sleepable locks held|\bSleeping on .* with the following|"
    r"\bis (?:not )?(?:exclusive |share )?locked but should|"
    r"\b(?:thread|process) .* (?:exiting|returning) with the following locks"
)
# Lines that continue a complaint.
GOES_ON = re.compile(
    r"^(?:\s|#\d|lock order .* (?:established|attempted)|KDB: stack|stack backtrace|"
    r"exclusive|shared|db_trace|--- )"
)

# Pairs of locks that FreeBSD itself takes in both orders, without asyncpager:
KNOWN = [
    # dqrele() of quotaoff(8), and unmounting with soft updates (14.2).
    {"FFS Lock", "struct mount mtx"},
]
LOCK = re.compile(r"^ (?:1st|2nd|3rd) \S+ .*?\(([^,]*), ")

MOST_LINES = 200


class Watcher:
    """Collects the lines of panics and complaints."""

    def __init__(self, allowed=None):
        self.allowed = re.compile(allowed) if allowed else None
        self.fatal = []
        self.complaints = []
        self._open = None

    def feed(self, line):
        """Process one line of the console."""
        if self.fatal:
            if len(self.fatal) < MOST_LINES:
                self.fatal.append(line)
            return
        if FATAL.search(line):
            self.fatal.append(line)
        elif COMPLAINT.search(line) and not self._belongs(line):
            self._open = [line]
            self.complaints.append(self._open)
        elif self._open is not None:
            if self._belongs(line) and len(self._open) < MOST_LINES:
                self._open.append(line)
            else:
                self._open = None

    def _belongs(self, line):
        return self._open is not None and GOES_ON.search(line) is not None

    def serious(self):
        """Complaints that neither KNOWN nor --allow covers."""
        return [lines for lines in self.complaints if not self._passed(lines)]

    def _passed(self, lines):
        locks = {match[1] for line in lines if (match := LOCK.search(line))}
        if locks in KNOWN:
            return True
        return bool(self.allowed) and any(self.allowed.search(line) for line in lines)

    def report(self):
        """All lines to report; empty if there are none."""
        return self.fatal + [line for lines in self.serious() for line in lines]
