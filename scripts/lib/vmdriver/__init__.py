# SPDX-License-Identifier: BSD-2-Clause
"""What scripts/vm is made of: cli -> session -> (machine, disks, console -> trouble)."""
