//! What the guest `exits` (tests/guests/exits.c) says of its accesses.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::results::KINDS;

/// What one run of the guest measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    /// For each of the [`KINDS`] of access its times, in ns, in ascending order.
    pub(crate) samples: BTreeMap<String, Vec<f64>>,
    /// What a second CPU did in each ms meanwhile; 0 without one.
    pub(crate) load: f64,
}

/// Reads the guest's output, in which `count` samples of each kind stand between lines of text.
///
/// # Errors
/// It is not what the guest writes; the error says what is missing: nothing that was not measured may be taken for fast.
pub(crate) fn parse(output: &[u8], count: u32) -> Result<Measured> {
    let mut rest = output;
    let mut measured = Measured::default();
    let mut clock = None;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        let field = |name: &str| {
            let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value
                .and_then(|value| value.parse::<u64>().ok())
                .with_context(|| format!("no {name} in {line:?}"))
        };
        match line.split(' ').next() {
            Some("clock") => {
                let scale = 2f64.powi(field("shift_plus_64")? as i32 - 64 - 32);
                clock = Some(scale * field("multiplier")? as f64);
            }
            Some("samples") => {
                let ns = clock.context("samples before the clock")?;
                let kind = line.split(' ').nth(1).context("samples of nothing")?.to_owned();
                let bytes = field("count")? as usize * 4;
                let dump =
                    rest.get(..bytes).with_context(|| format!("{kind}: {} of {bytes} bytes", rest.len()))?;
                rest = &rest[bytes..];
                let mut times: Vec<f64> = dump
                    .chunks_exact(4)
                    .map(|word| f64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]])) * ns)
                    .collect();
                times.sort_by(f64::total_cmp);
                measured.samples.insert(kind, times);
            }
            Some("load") => {
                let ms = field("cycles")? as f64 * clock.context("a load before the clock")? / 1e6;
                measured.load = if ms > 0.0 { field("done")? as f64 / ms } else { 0.0 };
                for kind in KINDS {
                    let found = measured.samples.get(kind).map_or(0, Vec::len);
                    ensure!(found == count as usize && found > 0, "{kind}: {found} samples of {count}");
                }
                return Ok(measured);
            }
            _ => {}
        }
    }
    bail!("the guest did not get to its end; it wrote {} bytes", output.len())
}

/// The value that `percent` of the ascending `values` do not exceed; 0 of none.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let last = values.len().saturating_sub(1);
    values.get((last * percent).div_ceil(100)).copied().unwrap_or_default()
}

/// The middle one of `values`, in any order.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_between_the_lines() {
        // 2^31 / 2^32 with a shift of 0: half a nanosecond each cycle.
        let said = |kinds: &[&str]| {
            let mut output = b"clock multiplier=2147483648 shift_plus_64=64\n".to_vec();
            for kind in kinds {
                output.extend(format!("samples {kind} count=2\n").bytes());
                output.extend(20u32.to_le_bytes());
                output.extend(u32::from(b'\n').to_le_bytes());
            }
            output.extend(b"load done=8 cycles=4000000\n");
            output
        };
        let output = said(&KINDS);
        let measured = parse(&output, 2).unwrap();
        assert_eq!(measured.samples["read"], [5.0, 10.0]);
        assert_eq!(measured.load, 4.0);
        assert!(parse(&output[..output.len() - 30], 2).is_err());
        // What was not measured is not fast.
        let error = |output: &[u8], count| parse(output, count).unwrap_err().to_string();
        assert_eq!(error(&output, 3), "read: 2 samples of 3");
        assert_eq!(error(&said(&["read", "write"]), 2), "virtio: 0 samples of 2");
        assert_eq!(error(&said(&[]), 0), "read: 0 samples of 0");
    }

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (51.0, 100.0));
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([]), 0.0);
    }
}
