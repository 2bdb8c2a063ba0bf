//! What there is to try, by what it reaches for.

mod descriptors;
mod files;
mod kernel;
mod memory;
mod namespaces;
mod processes;
mod sockets;

use crate::Case;

/// Every case, in the order in which they are tried: what makes processes and threads comes last.
pub fn all() -> impl Iterator<Item = &'static Case> {
    let groups = [
        files::CASES,
        namespaces::CASES,
        sockets::CASES,
        kernel::CASES,
        descriptors::CASES,
        memory::CASES,
        processes::CASES,
        kernel::LAST,
    ];
    groups.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_enough_and_each_has_a_name_and_a_second_layer() {
        let cases: Vec<_> = all().collect();
        assert!(cases.len() >= 80, "{}", cases.len());
        for (index, case) in cases.iter().enumerate() {
            assert!(cases.iter().take(index).all(|other| other.name != case.name), "{}", case.name);
            assert!(
                case.name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            );
            assert!(!case.second.is_empty() || case.harmless.is_some(), "{}", case.name);
        }
    }
}
