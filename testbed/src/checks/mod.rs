// SPDX-License-Identifier: BSD-2-Clause
//! Checks of every run: rules, lock order, freed memory. A broken rule is a
//! violation, which ends the run.

pub mod balance;
pub mod lookups;
pub mod preemption;
pub mod quarantine;
pub mod rules;
pub mod sleep;
pub mod witness;
