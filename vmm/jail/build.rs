//! Compiles the policies of the VMM's own processes.

fn main() -> Result<(), cellblock_policy::PolicyError> {
    for name in ["spawner", "supervisor", "vcpu", "loader"] {
        cellblock_policy::build::embed(&format!("policy/{{arch}}/{name}.policy"), name)?;
    }
    Ok(())
}
