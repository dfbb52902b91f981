# SPDX-License-Identifier: BSD-2-Clause
"""Errors, each with the exit code of scripts/vm that it leads to."""


class Failure(Exception):
    """The VM failed."""

    code = 1


class Trouble(Failure):
    """The kernel panicked or reported a lock order reversal or a similar error."""

    code = 2


class Timeout(Failure):
    """A timeout."""

    code = 3


class Usage(Failure):
    """Bad arguments."""

    code = 64


class NoInput(Failure):
    """A missing or unusable file."""

    code = 66


class Unavailable(Failure):
    """A missing program."""

    code = 69
