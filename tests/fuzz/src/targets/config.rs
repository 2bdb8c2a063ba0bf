//! Configurations: texts in TOML and JSON, and the options' own texts. A VM that is accepted is within its bounds.

use cellblock_config::{RawConfig, Rng, VmConfig};
use crate::Script;

/// What options are made of.
const WORDS: [&str; 48] = [
    "path=",
    "/a",
    ",",
    "=",
    "readonly",
    "id=",
    "queues=",
    "cache=",
    "writeback",
    "direct",
    "unsafe",
    "format=",
    "raw",
    "qcow2",
    "backing=",
    "rate=",
    "ops=",
    "tap=",
    "passt",
    "mac=",
    "02:00:00:00:00:01",
    "mtu=",
    "pairs=",
    "offloads=",
    "off",
    "on",
    "stdio",
    "null",
    "file=",
    "socket=",
    "limit=",
    "name=",
    "size=",
    "64M",
    "1K",
    "cid=",
    "3",
    "0",
    "1",
    "65535",
    "4294967295",
    "18446744073709551616",
    "-1",
    "stats",
    "reporting",
    "deflate-on-oom",
    ",,",
    "burst=",
];

fn text(script: &mut Script<'_>) -> String {
    let mut text = String::new();
    for _ in 0..script.u8() % 16 {
        match usize::from(script.u8()) {
            0xff => text.push_str(&script.text()),
            word => text.push_str(WORDS[word % WORDS.len()]),
        }
    }
    text
}

fn texts(script: &mut Script<'_>) -> Option<Vec<String>> {
    let count = script.u8() % 4;
    (count > 0).then(|| (0..count).map(|_| text(script)).collect())
}

fn options(script: &mut Script<'_>) -> RawConfig {
    let mut raw = RawConfig { kernel: Some("/k".into()), ..RawConfig::default() };
    let which = script.u16();
    let wanted = |bit: u16| which & 1 << bit != 0;
    if wanted(0) {
        raw.serial = Some(text(script));
    }
    if wanted(1) {
        raw.disk = texts(script);
    }
    if wanted(2) {
        raw.net = texts(script);
    }
    if wanted(3) {
        raw.console = texts(script);
    }
    if wanted(4) {
        raw.balloon = Some(text(script));
    }
    if wanted(5) {
        raw.vsock = Some(text(script));
    }
    if wanted(6) {
        raw.rng = Some(Rng::Options(text(script)));
    }
    if wanted(7) {
        raw.memory = text(script).parse().ok();
    }
    if wanted(8) {
        raw.id = Some(text(script));
    }
    if wanted(9) {
        (raw.cpus, raw.spares, raw.stop_timeout) =
            (Some(script.value() as u32), Some(script.u8().into()), Some(script.value()));
    }
    if wanted(10) {
        (raw.boot_protocol, raw.on_reboot, raw.cmdline) =
            (Some(text(script)), Some(text(script)), Some(text(script)));
    }
    raw
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let raw = match script.u8() % 4 {
        0 => toml::from_str(&String::from_utf8_lossy(script.rest())).ok(),
        1 => serde_json::from_slice(script.rest()).ok(),
        _ => Some(options(&mut script)),
    };
    let Some(Ok(vm)) = raw.map(VmConfig::try_from) else { return };
    assert!((1..=32).contains(&vm.cpus) && vm.spares <= 2 && vm.memory % (2 << 20) == 0);
    assert!(vm.disks.iter().all(|disk| (1..=16).contains(&disk.queues)));
    assert!(vm.balloon.is_none_or(|balloon| balloon.size < vm.memory));
}
