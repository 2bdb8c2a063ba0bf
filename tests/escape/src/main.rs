//! A hostile worker; see the library.
#![no_main]
#![allow(unsafe_code)] // Its `main` is not Rust's.

/// Not Rust's own, for the reason of `cellblock_sdk::worker!`.
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    cellblock_escape::program::run()
}
