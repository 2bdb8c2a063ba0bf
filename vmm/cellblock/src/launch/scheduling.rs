//! How the host schedules this process, and so the threads of its VM.

use std::time::Duration;

/// In `/proc/self/stat`, after the name: proc_pid_stat(5), field 41.
const POLICY: usize = 41 - 3;
/// `SCHED_OTHER`.
const OTHER: &str = "0";

/// The longest spin of a VM that may spin for `poll_max_us` µs. Whoever chose another policy than the usual one (a real-time one, above
/// all) gets none, and no worker on the CPU of a vCPU, which might not let it run.
pub(super) fn longest_spin(poll_max_us: u32) -> Duration {
    let usual = std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_usual(&stat));
    Duration::from_micros(if usual { poll_max_us.into() } else { 0 })
}

fn is_usual(stat: &str) -> bool {
    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(POLICY)) == Some(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_found_behind_any_name() {
        for (policy, usual) in [("0", true), ("1", false), ("2", false), ("3", false), ("5", false)] {
            let mut fields = vec!["7"; 52 - 2];
            fields[POLICY] = policy;
            assert_eq!(is_usual(&format!("12 (a) 0 b) {}\n", fields.join(" "))), usual, "{policy}");
        }
        assert!(!is_usual("") && !is_usual("1 (x) S 0"));
    }
}
