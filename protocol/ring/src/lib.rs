//! The exit ring: one lane per vCPU and worker, and the state page, generic over their atomics.
