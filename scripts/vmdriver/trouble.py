# SPDX-License-Identifier: BSD-2-Clause
"""Finds a kernel's cries for help among the lines of its console."""

import re

# The kernel stops here; what follows is the backtrace.
FATAL = re.compile(r"^(?:panic: |Fatal (?:double fault|trap \d+)|KDB: enter: |db> )")
# The kernel goes on, and is wrong all the same.
COMPLAINT = re.compile(
    r"^(?:lock order reversal|acquiring duplicate lock|"
    r".*(?:sleeping with|non-sleepable|could sleep with|held while)|"
    r"WARNING: .*(?:lock|leak)|Sleeping on .* with the following)"
)
# Lines that belong to the complaint before them.
GOES_ON = re.compile(
    r"^(?:\s|#\d|lock order .* (?:established|attempted)|KDB: stack|stack backtrace|"
    r"exclusive|shared|db_trace|--- )"
)

# Reversals that are FreeBSD's own, found in 14.2 without asyncpager's part in it.
KNOWN = [
    # quotaoff(8) takes the mount's mutex in dqrele() below FFS's; unmounting
    # does it the other way round in softdep_flushfiles().
    re.compile(r"^ 1st .*\(FFS Lock, .*ufs_quota\.c"),
]

MOST_LINES = 200


class Watcher:
    """Fed with lines, it keeps those that matter."""

    def __init__(self, allowed=None):
        self.allowed = re.compile(allowed) if allowed else None
        self.fatal = []
        self.complaints = []
        self._open = None

    def feed(self, line):
        """One line of the console."""
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
        """The complaints that are neither known nor covered by --allow."""
        passed = [*KNOWN, *([self.allowed] if self.allowed else [])]
        return [
            lines
            for lines in self.complaints
            if not any(pattern.search(line) for pattern in passed for line in lines)
        ]

    def report(self):
        """All lines that matter, or nothing when all is well."""
        return self.fatal + [line for lines in self.serious() for line in lines]
