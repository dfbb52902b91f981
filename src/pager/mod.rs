// SPDX-License-Identifier: BSD-2-Clause
//! The data path, in reading order: [`request`] → [`plan`] → [`submit`] → [`complete`].

pub mod complete;
pub mod plan;
pub mod request;
pub mod submit;

pub use request::{Answer, getpages};
