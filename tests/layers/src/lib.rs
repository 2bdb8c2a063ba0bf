//! The layer rules, enforced.
