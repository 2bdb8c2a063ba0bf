//! `--exit-stats`: what left the guest, register by register, on standard error.

use std::fmt::Write as _;

use cellblock_config::ExitStats;
use cellblock_supervisor::link::{ExitCount, MOST_EXIT_COUNTS};
use serde::Serialize;

/// The longest name of a device; the supervisor, which sends them, is not trusted with the user's terminal.
const MAX_NAME: usize = 24;

/// What the supervisor has told so far.
#[derive(Debug, Default)]
pub(crate) struct ExitTable {
    /// `None` = nobody asked, or it has been printed.
    form: Option<ExitStats>,
    /// At most [`MOST_EXIT_COUNTS`].
    counts: Vec<ExitCount>,
}

/// What `--exit-stats=json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Times that a vCPU left the guest.
    exits: u64,
    /// Those of them that were accesses.
    reads: u64,
    writes: u64,
    registers: &'a [ExitCount],
    /// Accesses of so many addresses that they were not told apart.
    elsewhere_reads: u64,
    elsewhere_writes: u64,
}

impl ExitTable {
    pub(crate) fn new(form: Option<ExitStats>) -> Self {
        ExitTable { form, counts: Vec::new() }
    }

    pub(crate) fn extend(&mut self, counts: Vec<ExitCount>) {
        if self.form.is_none() {
            return;
        }
        let room = MOST_EXIT_COUNTS.saturating_sub(self.counts.len());
        self.counts.extend(counts.into_iter().take(room).map(|count| ExitCount {
            device:
                count.device.map(|name| name.chars().filter(char::is_ascii_graphic).take(MAX_NAME).collect()),
            ..count
        }));
    }

    /// That was all: prints it.
    pub(crate) fn print(&mut self, exits: u64, elsewhere: (u64, u64)) {
        match self.form.take() {
            Some(ExitStats::Text) => note!("{}", self.table(exits, elsewhere).trim_end()),
            Some(ExitStats::Json) => match serde_json::to_string(&self.report(exits, elsewhere)) {
                Ok(line) => note!("{line}"),
                Err(error) => note!("cellblock: the exit statistics cannot be told: {error}"),
            },
            None => {}
        }
        self.counts.clear();
    }

    fn report(&self, exits: u64, elsewhere: (u64, u64)) -> Report<'_> {
        let reads = self.counts.iter().fold(elsewhere.0, |sum, count| sum.saturating_add(count.reads));
        let writes = self.counts.iter().fold(elsewhere.1, |sum, count| sum.saturating_add(count.writes));
        let (elsewhere_reads, elsewhere_writes) = elsewhere;
        Report { exits, reads, writes, registers: &self.counts, elsewhere_reads, elsewhere_writes }
    }

    /// One row for each register, those of one device together.
    fn table(&self, exits: u64, elsewhere: (u64, u64)) -> String {
        let Report { reads, writes, .. } = self.report(exits, elsewhere);
        let others = exits.saturating_sub(reads.saturating_add(writes));
        let mut table = format!(
            "cellblock: exits: {exits}: {reads} reads, {writes} writes, {others} others\n\
             {:12} {:>18} {:>6} {:>8} {:>8}\n",
            "device", "address", "offset", "reads", "writes"
        );
        let mut rows: Vec<_> = self.counts.iter().collect();
        // Who is nobody comes last.
        rows.sort_by_key(|count| (count.device.is_none(), count.device.clone(), count.region, count.offset));
        for ExitCount { device, offset, port, address, reads, writes, .. } in rows {
            let space = if *port { "port" } else { "mem" };
            let _ = writeln!(
                table,
                "{:12} {space:>5} {address:#12x} {offset:#6x} {reads:8} {writes:8}",
                device.as_deref().unwrap_or("nobody")
            );
        }
        if elsewhere != (0, 0) {
            let _ = writeln!(table, "{:38} {:8} {:8}", "elsewhere", elsewhere.0, elsewhere.1);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(device: Option<&str>, address: u64, reads: u64, writes: u64) -> ExitCount {
        let device = device.map(str::to_owned);
        ExitCount { device, region: 0, offset: address & 7, port: true, address, reads, writes }
    }

    fn table() -> ExitTable {
        let mut table = ExitTable::new(Some(ExitStats::Text));
        table.extend(vec![count(None, 0x80, 0, 7), count(Some("serial"), 0x3fd, 2, 0)]);
        table
    }

    #[test]
    fn a_table_has_a_row_for_each_register() {
        let text = table().table(12, (1, 0));
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0][1..], ["exits:", "12:", "3", "reads,", "7", "writes,", "2", "others"]);
        assert_eq!(rows[2], ["serial", "port", "0x3fd", "0x5", "2", "0"]);
        assert_eq!(rows[3], ["nobody", "port", "0x80", "0x0", "0", "7"]);
        assert_eq!(rows[4], ["elsewhere", "1", "0"]);
    }

    #[test]
    fn a_supervisor_that_lies_fills_neither_memory_nor_the_terminal() {
        let mut table = ExitTable::new(Some(ExitStats::Text));
        let name = format!("\u{1b}]0;you\u{7}\nser\u{202e}ial{}", "x".repeat(1000));
        for _ in 0..100 {
            table.extend(vec![count(Some(&name), 0, u64::MAX, u64::MAX); 32]);
        }
        assert_eq!(table.counts.len(), MOST_EXIT_COUNTS);
        assert_eq!(table.counts[0].device.as_deref(), Some("]0;youserialxxxxxxxxxxxx"));
        assert!(table.table(1, (u64::MAX, 1)).contains("0 others"));
        table.counts.truncate(1);
        table.print(1, (0, 0));
        // Nobody asked, or it is said already.
        for mut table in [table, ExitTable::new(None)] {
            table.extend(vec![count(None, 0, 1, 0)]);
            assert!(table.counts.is_empty());
        }
    }

    #[test]
    fn json_has_the_same() {
        let table = table();
        let json = serde_json::to_value(table.report(12, (1, 0))).unwrap();
        assert_eq!((&json["exits"], &json["reads"], &json["writes"]), (&12.into(), &3.into(), &7.into()));
        assert_eq!(json["registers"][1]["device"], "serial");
        assert_eq!(json["registers"][0]["device"], serde_json::Value::Null);
    }
}
