//! The policy language: text to lines, each a system call and its alternatives.

use crate::constants;

/// How a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual(u64),
}

/// One comparison of one argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub(crate) argument: u8,
    /// Only the lower 32 bits count.
    pub(crate) low: bool,
    pub(crate) comparison: Comparison,
    pub(crate) value: u64,
}

/// All of these must hold; an empty one always does.
pub(crate) type Alternative = Vec<Condition>;

/// What one line of a policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Blank,
    Section(String),
    Include(String),
    Allow { call: String, alternatives: Vec<Alternative> },
}

/// The line, or what is wrong with it.
pub(crate) fn line(text: &str) -> Result<Line, String> {
    let text = text.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(Line::Blank);
    }
    if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Ok(Line::Section(name.trim().to_owned()));
    }
    if let Some(name) = text.strip_prefix("include ") {
        return Ok(Line::Include(name.trim().to_owned()));
    }
    let (call, conditions) = match text.split_once(':') {
        Some((call, conditions)) => (call.trim(), Some(conditions)),
        None => (text, None),
    };
    if call.is_empty()
        || !call.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    {
        return Err(format!("{call:?} is no system call's name; a line is `name` or `name: conditions`"));
    }
    let alternatives = match conditions {
        Some(conditions) => Conditions { rest: conditions }.alternatives()?,
        None => vec![Alternative::new()],
    };
    Ok(Line::Allow { call: call.to_owned(), alternatives })
}

/// A recursive-descent reader over the text after the colon.
struct Conditions<'a> {
    rest: &'a str,
}

impl Conditions<'_> {
    fn alternatives(mut self) -> Result<Vec<Alternative>, String> {
        let mut alternatives = vec![self.conjunction()?];
        while self.take("||") {
            alternatives.push(self.conjunction()?);
        }
        self.rest = self.rest.trim_start();
        if self.rest.is_empty() { Ok(alternatives) } else { Err(format!("{:?} is left over", self.rest)) }
    }

    fn conjunction(&mut self) -> Result<Alternative, String> {
        let mut conditions = vec![self.condition()?];
        while self.take("&&") {
            conditions.push(self.condition()?);
        }
        Ok(conditions)
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let name = self.word();
        let (argument, low) = match name.split_once('.') {
            Some((argument, "low")) => (argument, true),
            _ => (name, false),
        };
        let argument = match argument.strip_prefix("arg").map(str::parse::<u8>) {
            Some(Ok(number @ 0..=5)) => number,
            _ => {
                return Err(format!(
                    "{name:?} is no argument; it is arg0 to arg5, or arg0.low for its lower half"
                ));
            }
        };
        let mask = if self.take_mask() { Some(self.value()?) } else { None };
        let comparison = self.comparison(mask)?;
        let value = self.value()?;
        if let Some(mask) = mask
            && value & !mask != 0
        {
            return Err(format!("{value:#x} has bits outside the mask {mask:#x}, so this never holds"));
        }
        Ok(Condition { argument, low, comparison, value })
    }

    fn comparison(&mut self, mask: Option<u64>) -> Result<Comparison, String> {
        let table = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let found = table.into_iter().find(|(sign, _)| self.take(sign)).map(|(_, comparison)| comparison);
        match (found, mask) {
            (Some(Comparison::Equal), Some(mask)) => Ok(Comparison::MaskedEqual(mask)),
            (Some(_), Some(_)) => Err("after a mask only == is possible".to_owned()),
            (Some(comparison), None) => Ok(comparison),
            (None, _) => {
                Err(format!("{:?} does not start with ==, !=, <, <=, > or >=", self.rest.trim_start()))
            }
        }
    }

    /// Terms joined by `|`.
    fn value(&mut self) -> Result<u64, String> {
        let mut value = self.term()?;
        while self.take_single('|') {
            value |= self.term()?;
        }
        Ok(value)
    }

    fn term(&mut self) -> Result<u64, String> {
        if self.take("~") {
            return Ok(!self.term()?);
        }
        if self.take("(") {
            let value = self.value()?;
            return if self.take(")") { Ok(value) } else { Err("a parenthesis is not closed".to_owned()) };
        }
        if self.take("-") {
            return Ok(self.term()?.wrapping_neg());
        }
        let word = self.word();
        number(word)
            .or_else(|| constants::value_of(word))
            .ok_or_else(|| format!("{word:?} is neither a number nor a constant that constants.rs knows"))
    }

    fn word(&mut self) -> &str {
        self.rest = self.rest.trim_start();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn take(&mut self, sign: &str) -> bool {
        match self.rest.trim_start().strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// `|` or `&`, but not the doubled sign.
    fn take_single(&mut self, sign: char) -> bool {
        let doubled: String = [sign, sign].iter().collect();
        !self.rest.trim_start().starts_with(&doubled) && self.take(sign.encode_utf8(&mut [0; 4]))
    }

    fn take_mask(&mut self) -> bool {
        self.take_single('&')
    }
}

fn number(word: &str) -> Option<u64> {
    if let Some(digits) = word.strip_prefix("0x") {
        u64::from_str_radix(digits, 16).ok()
    } else if let Some(digits) = word.strip_prefix("0o") {
        u64::from_str_radix(digits, 8).ok()
    } else {
        word.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(text: &str) -> Vec<Alternative> {
        match line(text) {
            Ok(Line::Allow { alternatives, .. }) => alternatives,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_name_alone_allows_every_argument() {
        assert_eq!(allow("read # from the doorbell"), vec![vec![]]);
    }

    #[test]
    fn and_binds_tighter_than_or() {
        let alternatives = allow("fcntl: arg1.low == F_GETFL || arg1.low == F_SETFL && arg2 == O_NONBLOCK");
        assert_eq!(alternatives.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
        assert!(alternatives[0][0].low);
        assert_eq!(alternatives[1][1].value, 0o4000);
    }

    #[test]
    fn masks_are_complemented_and_grouped() {
        let alternatives = allow("mmap: arg2 & ~(PROT_READ | PROT_WRITE) == 0");
        assert_eq!(alternatives[0][0].comparison, Comparison::MaskedEqual(!3));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("Read", "is no system call's name"),
            ("ioctl: arg6 == 1", "is no argument"),
            ("ioctl: arg1 == FOO", "neither a number nor a constant"),
            ("ioctl: arg1 = 1", "does not start with =="),
            ("ioctl: arg1 & 3 == 4", "never holds"),
            ("ioctl: arg1 & 3 < 4", "only == is possible"),
            ("ioctl: arg1 == 1 arg2", "left over"),
            ("ioctl: arg1 == (1", "not closed"),
            ("ioctl:", "is no argument"),
        ] {
            let error = line(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
