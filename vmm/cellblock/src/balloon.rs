//! `cellblock balloon`: how large a VM's balloon is, how large it is to be, and what the guest tells of its memory.

use std::fmt::Write as _;

use anyhow::{Context, bail};
use cellblock_config::ByteSize;
use cellblock_wire::control::{BALLOON_STATISTICS, BalloonReport};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::BalloonArgs;
use crate::front::control_socket::{Answer, What, ask};
use crate::ps;

/// A balloon's page, in bytes, whatever the guest's are (Virtio 1.3 §5.5.6).
const PAGE: u64 = 4096;

/// A statistic's name and whether it is in bytes, by its tag (§5.5.6.4; from 10 on Linux `include/uapi/linux/virtio_balloon.h`).
const STATISTICS: [(&str, bool); BALLOON_STATISTICS] = [
    ("swap-in", true),
    ("swap-out", true),
    ("major-faults", false),
    ("minor-faults", false),
    ("free", true),
    ("total", true),
    ("available", true),
    ("caches", true),
    ("hugetlb-allocations", false),
    ("hugetlb-failures", false),
    ("oom-kills", false),
    ("allocation-stalls", false),
    ("async-scan", false),
    ("direct-scan", false),
    ("async-reclaim", false),
    ("direct-reclaim", false),
];

/// What is printed as JSON. All in bytes but what counts events.
#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    target: u64,
    actual: u64,
    /// The guest told the statistics just now.
    fresh: bool,
    statistics: Map<String, Value>,
}

/// Does what `args` say.
///
/// # Errors
/// The VM does not exist, has no balloon, or does not answer; the size makes no sense.
pub(crate) fn balloon(args: &BalloonArgs) -> anyhow::Result<()> {
    let set = args.size.map(pages).transpose()?;
    let (uid, id) = ps::one(&args.id)?;
    let answer = ask(uid, &id, What::Balloon { set });
    match answer.with_context(|| format!("VM {id} does not answer"))? {
        Answer::Balloon(balloon) => print(&id, &balloon, args.json),
        Answer::Refused(reason) => bail!("VM {id}: {reason}"),
        _ => bail!("VM {id} answered something else"),
    }
}

fn pages(size: ByteSize) -> anyhow::Result<u32> {
    let pages = u32::try_from(size.0 / PAGE).ok().filter(|_| size.0.is_multiple_of(PAGE));
    pages.with_context(|| format!("size is {size}; allowed is a multiple of 4K, less than 16T"))
}

fn print(id: &str, balloon: &BalloonReport, json: bool) -> anyhow::Result<()> {
    if json {
        say!("{}", serde_json::to_string_pretty(&shown(id, balloon))?)
    } else {
        say!("{}", table(id, balloon).trim_end())
    }
}

fn told(balloon: &BalloonReport) -> impl Iterator<Item = (&'static str, bool, u64)> {
    let named = STATISTICS.iter().zip(balloon.statistics);
    named.filter_map(|((name, bytes), value)| Some((*name, *bytes, value?)))
}

fn shown(id: &str, balloon: &BalloonReport) -> Shown {
    Shown {
        id: id.to_owned(),
        target: u64::from(balloon.target) * PAGE,
        actual: u64::from(balloon.actual) * PAGE,
        fresh: balloon.fresh,
        statistics: told(balloon).map(|(name, _, value)| (name.to_owned(), value.into())).collect(),
    }
}

fn table(id: &str, balloon: &BalloonReport) -> String {
    let [target, actual] = [balloon.target, balloon.actual].map(|pages| ByteSize(u64::from(pages) * PAGE));
    let mut text =
        format!("VM {id}: the balloon holds {actual} of the guest's memory; it is to hold {target}\n");
    let when = if balloon.fresh { "" } else { " (as last told; it did not answer now)" };
    if told(balloon).next().is_some() {
        let _ = writeln!(text, "the guest's memory{when}:");
    } else {
        let _ = writeln!(text, "the guest tells no statistics");
    }
    for (name, bytes, value) in told(balloon) {
        let value = if bytes { ByteSize(value).to_string() } else { value.to_string() };
        let _ = writeln!(text, "  {name:<20} {value:>12}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balloon_of(statistics: &[(usize, u64)]) -> BalloonReport {
        let mut balloon =
            BalloonReport { target: 32768, actual: 256, fresh: true, ..BalloonReport::default() };
        statistics.iter().for_each(|&(tag, value)| balloon.statistics[tag] = Some(value));
        balloon
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let text = table("a", &balloon_of(&[(4, 3 << 20), (10, 2)]));
        assert!(text.starts_with("VM a: the balloon holds 1M of the guest's memory; it is to hold 128M\n"));
        let words: Vec<Vec<_>> = text.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [["free", "3M"], ["oom-kills", "2"]]);
        assert!(table("a", &balloon_of(&[])).ends_with("no statistics\n"));
    }

    #[test]
    fn json_is_in_bytes() {
        let json = serde_json::to_value(shown("a", &balloon_of(&[(5, 7)]))).unwrap();
        assert_eq!((&json["target"], &json["actual"]), (&(128u64 << 20).into(), &(1u64 << 20).into()));
        assert_eq!(json["statistics"], serde_json::json!({ "total": 7 }));
    }

    #[test]
    fn a_size_is_whole_pages() {
        assert_eq!(pages(ByteSize(128 << 20)).unwrap(), 32768);
        assert!(pages(ByteSize(1)).is_err() && pages(ByteSize(1 << 44)).is_err());
    }
}
