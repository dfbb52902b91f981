# SPDX-License-Identifier: BSD-2-Clause
"""Errors, each with the exit code of scripts/vm that it leads to."""


class Failure(Exception):
    """Something in the VM went wrong that is not a test."""

    code = 1


class Trouble(Failure):
    """The kernel panicked or complained about its locks."""

    code = 2


class Timeout(Failure):
    """It took longer than it may."""

    code = 3


class Usage(Failure):
    """Arguments that make no sense."""

    code = 64


class NoInput(Failure):
    """A file that is not there or is not what it should be."""

    code = 66


class Unavailable(Failure):
    """A program that is missing."""

    code = 69
