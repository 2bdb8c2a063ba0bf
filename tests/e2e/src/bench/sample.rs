//! Samples and what is said of them.

use std::time::Duration;

/// Measured times of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(Vec<Duration>);

impl Sample {
    pub(crate) fn add(&mut self, time: Duration) {
        let at = self.0.partition_point(|other| *other < time);
        self.0.insert(at, time);
    }

    /// The time that `percent` of the runs did not exceed; zero without runs.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last * percent).div_ceil(100)).copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (least, median) = (ms(self.percentile(0)), ms(self.median()));
        let (p90, most) = (ms(self.percentile(90)), ms(self.percentile(100)));
        write!(
            to,
            "median {median:.2} ms  (least {least:.2}, p90 {p90:.2}, most {most:.2}, n = {})",
            self.0.len()
        )
    }
}

/// Prints a figure with its limit; whether it keeps it.
pub(crate) fn verdict(what: &str, value: f64, limit: f64, unit: &str) -> bool {
    let kept = value <= limit;
    println!("{:4} {what}: {value:.2} {unit}, limit {limit} {unit}", if kept { "ok" } else { "MISS" });
    kept
}

/// Prints a ratio with its lower limit; whether it keeps it.
pub(crate) fn at_least(what: &str, ratio: f64, limit: f64) -> bool {
    let kept = ratio >= limit;
    println!("{:4} {what}: {ratio:.3} times, at least {limit}", if kept { "ok" } else { "MISS" });
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_runs() {
        let mut sample = Sample::default();
        for ms in [5, 1, 4, 2, 3] {
            sample.add(Duration::from_millis(ms));
        }
        assert_eq!(sample.median(), Duration::from_millis(3));
        assert_eq!(sample.percentile(100), Duration::from_millis(5));
        assert_eq!(sample.percentile(0), Duration::from_millis(1));
    }
}
