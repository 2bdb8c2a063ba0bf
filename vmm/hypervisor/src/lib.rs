//! The portable hypervisor interface, and a scripted mock behind it.
