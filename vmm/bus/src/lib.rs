//! The immutable map from guest addresses to device regions.
