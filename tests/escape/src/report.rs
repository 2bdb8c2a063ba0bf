//! What became of the cases, in lines that fit into a worker's log messages.

/// What became of one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A seccomp program refused it.
    Seccomp,
    /// The kernel refused it otherwise.
    Errno(i32),
    /// It got through.
    Through,
}

/// How each line begins.
pub const MARK: &str = "escape:";
/// The last line's only word.
pub const END: &str = "end";
/// The longest line, in bytes.
const LINE: usize = 480;

impl Report {
    fn word(self) -> String {
        match self {
            Report::Seccomp => "seccomp".to_owned(),
            Report::Errno(errno) => errno.to_string(),
            Report::Through => "through".to_owned(),
        }
    }

    fn read(word: &str) -> Option<Report> {
        match word {
            "seccomp" => Some(Report::Seccomp),
            "through" => Some(Report::Through),
            number => number.parse().ok().map(Report::Errno),
        }
    }
}

/// `reports` as lines, and the last one.
pub fn lines(reports: &[(&str, Report)]) -> Vec<String> {
    let mut lines = vec![MARK.to_owned()];
    for (name, report) in reports {
        let word = format!(" {name}={}", report.word());
        match lines.last_mut() {
            Some(line) if line.len() + word.len() <= LINE => line.push_str(&word),
            _ => lines.push(format!("{MARK}{word}")),
        }
    }
    lines.push(format!("{MARK} {END}"));
    lines
}

/// What the lines of `text` that have `of` in front of the mark report.
pub fn read<'a>(text: &'a str, of: &str) -> Vec<(&'a str, Report)> {
    let start = format!("{of}: {MARK}");
    let words = text.lines().filter_map(|line| line.split_once(&start)).flat_map(|(_, rest)| rest.split(' '));
    words
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, word)| Some((name, Report::read(word)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_read() {
        let names: Vec<String> = (0..200).map(|number| format!("case_{number}")).collect();
        let outcome = |number| match number % 3 {
            0 => Report::Seccomp,
            1 => Report::Through,
            _ => Report::Errno(number),
        };
        let reports: Vec<_> =
            names.iter().zip(0..).map(|(name, number)| (name.as_str(), outcome(number))).collect();
        let lines = lines(&reports);
        assert!(
            lines.iter().all(|line| line.len() <= LINE)
                && lines.last().is_some_and(|line| line.ends_with(END))
        );
        let text: String =
            lines.iter().map(|line| format!("cellblock: [1 ms] device rtc: {line}\n")).collect();
        assert_eq!(read(&text, "rtc"), reports);
        assert!(read(&text, "serial").is_empty());
    }
}
