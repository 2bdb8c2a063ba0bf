//! The kernel objects under the protocol: sealed memfds, mappings, futexes, doorbells, descriptor passing.
