//! The layer rules of the design, enforced over `cargo metadata` and the sources; see `tests/rules.rs`.
#![forbid(unsafe_code)]
