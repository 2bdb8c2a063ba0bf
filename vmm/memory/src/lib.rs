//! Guest memory: one sealed memfd.
