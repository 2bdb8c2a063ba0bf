//! Compiles the seccomp policy into the worker.

fn main() -> Result<(), cellblock_policy::PolicyError> {
    cellblock_policy::build::embed("policy/{arch}.policy", "worker")
}
