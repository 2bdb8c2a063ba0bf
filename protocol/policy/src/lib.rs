//! Seccomp policies: readable text in, BPF out, at build time.
