//! Streams of which nothing may be missing, but a part may come again.

/// Compares what was `said` with what was `heard`, in which at any place up to `reach` bytes that came just before may come again:
/// how often that was so.
///
/// # Errors
/// Bytes are missing, or others are there: where, and what.
pub fn repeats(said: &[u8], heard: &[u8], reach: usize) -> Result<usize, String> {
    let (mut at, mut found) = (0, 0);
    for (here, byte) in heard.iter().enumerate() {
        if said.get(at) != Some(byte) {
            // How far the stream has gone back: to where most of what follows was.
            let next = &heard[here..];
            let alike = |back: &usize| {
                let before = said[at - back..].iter();
                before.zip(next).take_while(|(one, other)| one == other).count()
            };
            let back = (1..=reach.min(at)).rev().max_by_key(alike).filter(|back| alike(back) > 0);
            let Some(back) = back else { return Err(differs(said, at, next)) };
            at -= back;
            found += 1;
        }
        at += 1;
    }
    if at == said.len() { Ok(found) } else { Err(differs(said, at, &[])) }
}

fn differs(said: &[u8], at: usize, heard: &[u8]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    format!("byte {at}: wanted is {:?}, and there is {:?}", text(&said[at..]), text(heard))
}

#[cfg(test)]
mod tests {
    use super::repeats;

    fn lines(count: usize) -> Vec<u8> {
        (1..=count).flat_map(|line| format!("line {line} of many\n").into_bytes()).collect()
    }

    #[test]
    fn what_comes_again_is_found_and_what_is_missing_too() {
        let said = lines(200);
        assert_eq!(repeats(&said, &said, 64), Ok(0));
        for at in 40..said.len() {
            for back in [1, 7, 16, 40] {
                let heard = [&said[..at], &said[at - back..]].concat();
                let count = repeats(&said, &heard, 64).unwrap();
                assert!((1..3).contains(&count), "{back} bytes before {at} again: {count}");
            }
            for missing in [1, 5, 30] {
                let rest = said.get(at + missing..).unwrap_or_default();
                repeats(&said, &[&said[..at], rest].concat(), 64).unwrap_err();
            }
            repeats(&said, &[&said[..at], b"#", &said[at..]].concat(), 64).unwrap_err();
        }
        repeats(&said, &[&said[..], b"x"].concat(), 64).unwrap_err();
    }
}
