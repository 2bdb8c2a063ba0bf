//! Compiles the seccomp policy into the worker.
#![forbid(unsafe_code)]

fn main() -> Result<(), cellblock_policy::PolicyError> {
    cellblock_policy::build::embed("policy/{arch}.policy", "worker")
}
