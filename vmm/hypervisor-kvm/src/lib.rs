//! The KVM back end of the portable hypervisor interface.
