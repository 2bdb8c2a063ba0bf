//! What the fuzz targets share: how bytes become a script, a guest that does what it says, and memory that does not keep still.

pub mod guest;
pub mod host;
pub mod memory;
pub mod registers;
pub mod script;

pub use script::Script;
