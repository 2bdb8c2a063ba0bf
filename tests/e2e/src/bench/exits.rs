//! How often a vCPU left the kernel, by KVM's own tracepoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;

const TRACING: &str = "/sys/kernel/tracing";

/// Runs `work`, and says beside its result how many exits to userspace it made, by reason; `unknown` where the kernel cannot trace.
///
/// # Errors
/// Those of `work`.
pub(crate) fn count<T>(work: impl FnOnce() -> Result<T>) -> Result<(String, T)> {
    let tracing = Path::new(TRACING);
    let event = tracing.join("events/kvm/kvm_userspace_exit/enable");
    let traced = fs::write(tracing.join("buffer_size_kb"), "16384").is_ok() && fs::write(&event, "1").is_ok();
    // Writing the trace file empties it.
    let _ = fs::write(tracing.join("trace"), "");
    let done = work();
    let _ = fs::write(&event, "0");
    let done = done?;
    if !traced {
        return Ok(("unknown (no tracefs)".into(), done));
    }
    let mut reasons = BTreeMap::<String, usize>::new();
    for line in fs::read_to_string(tracing.join("trace"))?.lines() {
        if let Some((_, reason)) = line.split_once("kvm_userspace_exit: reason ") {
            *reasons.entry(reason.split(' ').next().unwrap_or("?").to_owned()).or_default() += 1;
        }
    }
    let total: usize = reasons.values().sum();
    Ok((format!("{total} {reasons:?}"), done))
}
