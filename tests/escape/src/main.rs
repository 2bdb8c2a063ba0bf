//! A hostile worker; see the library.
#![no_main]

cellblock_channel::c_main!(cellblock_escape::program::run());
