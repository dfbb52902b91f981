# SPDX-License-Identifier: BSD-2-Clause
"""The parts of scripts/vm: cli -> session -> (machine, disks, jobs, console -> trouble)."""
