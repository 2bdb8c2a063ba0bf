//! Options that come as one text: `name=value,flag,name=value`. A comma in a value is written twice.

use std::path::PathBuf;
use std::str::FromStr;

use cellblock_wire::device::{Bucket, Limits};

use crate::{ByteSize, ConfigError};

/// The parts of one text, each taken once.
#[derive(Debug)]
pub(crate) struct Options {
    field: &'static str,
    allowed: &'static str,
    text: String,
    parts: Vec<String>,
}

impl Options {
    /// Splits `text`, the value of `field`, which may be as `allowed` says.
    pub(crate) fn new(field: &'static str, text: &str, allowed: &'static str) -> Self {
        let mut parts = vec![String::new()];
        let mut rest = text.chars().peekable();
        while let Some(one) = rest.next() {
            match (one, parts.last_mut()) {
                (',', Some(last)) if rest.next_if_eq(&',').is_some() => last.push(','),
                (',', _) => parts.push(String::new()),
                (one, Some(last)) => last.push(one),
                (_, None) => {}
            }
        }
        if text.is_empty() {
            parts.clear();
        }
        Options { field, allowed, text: text.to_owned(), parts }
    }

    /// The refusal of the whole text.
    pub(crate) fn refused(&self) -> ConfigError {
        ConfigError::value(self.field, &self.text, self.allowed)
    }

    /// The first part, which has no name of its own.
    pub(crate) fn first(&mut self) -> Option<String> {
        (!self.parts.is_empty()).then(|| self.parts.remove(0))
    }

    /// Whether the word `name` is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let place = self.parts.iter().position(|part| part == name);
        place.map(|index| self.parts.remove(index)).is_some()
    }

    /// The value of `name`; none if it is not there.
    ///
    /// # Errors
    /// It is empty.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ConfigError> {
        let value = |part: &String| part.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        let Some(index) = self.parts.iter().position(|part| value(part).is_some()) else { return Ok(None) };
        let found = value(&self.parts.remove(index)).filter(|value| !value.is_empty());
        found.map(Some).ok_or_else(|| self.refused())
    }

    /// The path in `name`, which must be there.
    ///
    /// # Errors
    /// It is not, or is empty.
    pub(crate) fn path(&mut self, name: &str) -> Result<PathBuf, ConfigError> {
        self.text(name)?.map(PathBuf::from).ok_or_else(|| self.refused())
    }

    /// The number in `name`, which `fits` takes.
    ///
    /// # Errors
    /// It is none, or does not fit.
    pub(crate) fn number<T: FromStr>(
        &mut self,
        name: &str,
        fits: impl FnOnce(&T) -> bool,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().ok().filter(fits).map(Some).ok_or_else(|| self.refused())
    }

    /// One of `choices` in `name`.
    ///
    /// # Errors
    /// It is none of them.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        name: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let found = choices.iter().find(|(name, _)| *name == text);
        found.map(|(_, value)| Some(*value)).ok_or_else(|| self.refused())
    }

    /// `rate=BYTES[+BURST]` and `ops=N[+BURST]`: so much a second, and how much more may come at once (as much, if it is not
    /// said).
    ///
    /// # Errors
    /// A number is none, zero, or past 2^50.
    pub(crate) fn limits(&mut self) -> Result<Limits, ConfigError> {
        Ok(Limits { bytes: self.bucket("rate")?, operations: self.bucket("ops")? })
    }

    fn bucket(&mut self, name: &str) -> Result<Option<Bucket>, ConfigError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = |text: &str| {
            let number = text.parse::<ByteSize>().ok().map(|size| size.0);
            number.filter(|number| (1..=1 << 50).contains(number)).ok_or_else(|| self.refused())
        };
        let (rate, burst) = text.split_once('+').unwrap_or((&text, &text));
        Ok(Some(Bucket { per_second: number(rate)?, burst: number(burst)? }))
    }

    /// Nothing is left over.
    ///
    /// # Errors
    /// Something is.
    pub(crate) fn end(self) -> Result<(), ConfigError> {
        if self.parts.is_empty() { Ok(()) } else { Err(self.refused()) }
    }
}

/// A name of `1..=most` letters, digits, `-`, `_` and `.`.
pub(crate) fn is_name(text: &str, most: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=most).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        Options::new("disk", text, "something else")
    }

    #[test]
    fn a_comma_in_a_value_is_written_twice() {
        let mut options = options("path=/a,,b,readonly");
        assert_eq!(options.path("path").unwrap(), PathBuf::from("/a,b"));
        assert!(options.flag("readonly") && !options.flag("readonly"));
        options.end().unwrap();
    }

    #[test]
    fn what_nobody_takes_is_refused() {
        let error = options("a=1,b=2").end().unwrap_err().to_string();
        assert_eq!(error, r#"disk is "a=1,b=2"; allowed is something else"#);
        assert!(options("a=1,a=2").text("a").is_ok_and(|value| value.as_deref() == Some("1")));
    }

    #[test]
    fn limits_have_a_burst_of_their_own() {
        let limits = options("rate=10M+1M,ops=500").limits().unwrap();
        assert_eq!(limits.bytes, Some(Bucket { per_second: 10 << 20, burst: 1 << 20 }));
        assert_eq!(limits.operations, Some(Bucket { per_second: 500, burst: 500 }));
        for wrong in ["rate=0", "rate=1+0", "rate=x", "rate=", "ops=2000T"] {
            assert!(options(wrong).limits().is_err(), "{wrong}");
        }
    }
}
