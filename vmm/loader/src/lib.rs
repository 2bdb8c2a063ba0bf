//! Kernel, initrd and command line into guest memory.
