// SPDX-License-Identifier: BSD-2-Clause
//! Errors that mean: not here, not now; nothing was measured.

/// See the module's documentation.
#[derive(Debug)]
pub struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Such an error.
pub fn unusable(what: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Unusable(what.into()))
}
