//! `--exit-stats`: what left the guest, register by register, on standard error.

use std::fmt::Write as _;

use cellblock_config::ExitStats;
use cellblock_supervisor::link::ExitCount;
use serde::Serialize;

/// What the supervisor has told so far.
#[derive(Debug, Default)]
pub(crate) struct ExitTable {
    form: Option<ExitStats>,
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
        self.counts.extend(counts);
    }

    /// That was all: prints it.
    pub(crate) fn print(&mut self, exits: u64, elsewhere: (u64, u64)) {
        match self.form {
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
        let reads = self.counts.iter().map(|count| count.reads).sum::<u64>() + elsewhere.0;
        let writes = self.counts.iter().map(|count| count.writes).sum::<u64>() + elsewhere.1;
        let (elsewhere_reads, elsewhere_writes) = elsewhere;
        Report { exits, reads, writes, registers: &self.counts, elsewhere_reads, elsewhere_writes }
    }

    /// One row for each register, those of one device together.
    fn table(&self, exits: u64, elsewhere: (u64, u64)) -> String {
        let Report { reads, writes, .. } = self.report(exits, elsewhere);
        let others = exits.saturating_sub(reads + writes);
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
    fn json_has_the_same() {
        let table = table();
        let json = serde_json::to_value(table.report(12, (1, 0))).unwrap();
        assert_eq!((&json["exits"], &json["reads"], &json["writes"]), (&12.into(), &3.into(), &7.into()));
        assert_eq!(json["registers"][1]["device"], "serial");
        assert_eq!(json["registers"][0]["device"], serde_json::Value::Null);
    }
}
