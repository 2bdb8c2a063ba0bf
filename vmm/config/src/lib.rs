//! The configuration of a VM: read as data, validated once.
