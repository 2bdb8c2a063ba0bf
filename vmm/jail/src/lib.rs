//! Sandboxes for every process of a VM.
