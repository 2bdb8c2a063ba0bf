//! Compiles every worker's policy into the hostile one, which lives under the program of whatever device it is put in place of.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let devices = Path::new("../../device-procs");
    println!("cargo::rerun-if-changed={}", devices.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(devices)? {
        let entry = entry?;
        if entry.path().join("src/main.rs").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    let mut table = String::from("&[\n");
    for name in &names {
        cellblock_policy::build::embed(&format!("../../device-procs/{name}/policy/{{arch}}.policy"), name)?;
        writeln!(
            table,
            "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.serve.bpf\"))),"
        )?;
    }
    table.push(']');
    fs::write(Path::new(&env::var("OUT_DIR")?).join("programs.rs"), table)?;
    Ok(())
}
