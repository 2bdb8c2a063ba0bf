//! A scripted vCPU for tests.
