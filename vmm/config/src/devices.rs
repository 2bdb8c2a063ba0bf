//! The devices that a VM has when it is told so: what their options say.

use cellblock_wire::device::{Limits, MAX_PAIRS, MAX_PORTS, PORT_NAME_BYTES};

use crate::options::{Options, is_name};
use crate::sink::sink;
use crate::{ByteSize, ConfigError, StreamSink};

/// The serial port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Serial {
    /// Where it leads.
    pub sink: StreamSink,
    /// Of its output.
    pub limits: Limits,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// Its name on the host: 1 to 20 letters, digits, `-`, `_` and `.`. No two have the same.
    pub id: String,
    /// What it leads to.
    pub backend: NetBackend,
    /// Its address; `None` = one made of the VM's name and the device's.
    pub mac: Option<[u8; 6]>,
    /// What the guest is told of the largest packet, 68 to 65535.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 to 7.
    pub queues: u16,
    /// Checksums and segmentation may be left to the other side.
    pub offloads: bool,
    /// In each direction.
    pub limits: Limits,
}

/// What a network device leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetBackend {
    /// A tap interface, by its name.
    Tap(String),
    /// passt, a network of its own user's rights.
    Passt,
}

/// A console port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePort {
    /// Where it leads.
    pub sink: StreamSink,
    /// What the guest calls it: at most 32 letters, digits, `-`, `_` and `.`.
    pub name: Option<String>,
}

/// A balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balloon {
    /// How large it is to be at first, in bytes: a multiple of 4 KiB.
    pub size: u64,
    /// The guest may take memory back when it has no other.
    pub deflate_on_oom: bool,
    /// The guest tells how it uses its memory.
    pub statistics: bool,
    /// The guest gives back memory that it does not use.
    pub reporting: bool,
}

/// A socket device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock {
    /// The guest's context id, 3 and up.
    pub cid: u32,
    /// The Unix socket that leads to the guest; the guest's own connections go to this path, `_` and the port.
    pub path: std::path::PathBuf,
}

const SERIAL_ALLOWED: &str =
    "stdio, null, file=PATH[,limit=SIZE] or socket=PATH; each with [,rate=BYTES[+BURST]]";
const NET_ALLOWED: &str = "tap=NAME or passt, with [,id=NAME][,mac=XX:XX:XX:XX:XX:XX][,mtu=68 to 65535][,queues=1 to 7][,offloads=on|off]\
                           [,rate=BYTES[+BURST]][,ops=N[+BURST]]; passt has one queue";
const CONSOLE_ALLOWED: &str = "stdio, null, file=PATH[,limit=SIZE] or socket=PATH; each with [,name=NAME]";
const BALLOON_ALLOWED: &str =
    "size=SIZE, a multiple of 4K, with [,deflate-on-oom=on|off][,statistics=on|off][,reporting=on|off]";
const VSOCK_ALLOWED: &str = "cid=N,path=PATH with a cid from 3 to 4294967294";
const RNG_ALLOWED: &str = "[rate=BYTES[+BURST]][,ops=N[+BURST]]";
const SWITCH: [(&str, bool); 2] = [("on", true), ("off", false)];

pub(crate) fn serial(text: &str) -> Result<Serial, ConfigError> {
    let mut options = Options::new("serial", text, SERIAL_ALLOWED);
    let serial = Serial { sink: sink(&mut options)?, limits: options.limits()? };
    options.end()?;
    Ok(serial)
}

/// What an entropy device may give.
pub(crate) fn rng(text: &str) -> Result<Limits, ConfigError> {
    let mut options = Options::new("rng", text, RNG_ALLOWED);
    let limits = options.limits()?;
    options.end().map(|()| limits)
}

/// The network devices that `texts` describe. One without a name is `net` and its number, from 0.
pub(crate) fn nets(texts: &[String]) -> Result<Vec<Net>, ConfigError> {
    let nets: Vec<Net> =
        texts.iter().enumerate().map(|(number, text)| net(text, number)).collect::<Result<_, _>>()?;
    for (number, net) in nets.iter().enumerate() {
        if nets.iter().take(number).any(|other| other.id == net.id) {
            return Err(ConfigError::value("net id", &net.id, "another for each network device"));
        }
    }
    Ok(nets)
}

fn net(text: &str, number: usize) -> Result<Net, ConfigError> {
    let mut options = Options::new("net", text, NET_ALLOWED);
    let backend = match (options.flag("passt"), options.text("tap")?) {
        (true, None) => NetBackend::Passt,
        // The kernel's IFNAMSIZ is 16 with the final zero.
        (false, Some(name)) if name.len() <= 15 && !name.contains('/') => NetBackend::Tap(name),
        _ => return Err(options.refused()),
    };
    let id = options.text("id")?.unwrap_or_else(|| format!("net{number}"));
    let mac = options.text("mac")?.map(|text| mac(&text).ok_or_else(|| options.refused())).transpose()?;
    let mtu = options.number("mtu", |mtu| *mtu >= 68)?;
    let queues = options.number("queues", |queues| (1..=MAX_PAIRS).contains(queues))?.unwrap_or(1);
    let offloads = options.choice("offloads", &SWITCH)?.unwrap_or(true) && backend != NetBackend::Passt;
    let limits = options.limits()?;
    if !is_name(&id, 20) || (backend == NetBackend::Passt && queues > 1) {
        return Err(options.refused());
    }
    options.end()?;
    Ok(Net { id, backend, mac, mtu, queues, offloads, limits })
}

/// A unicast address that is not all zeroes.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut bytes = text.split(':');
    for byte in &mut address {
        let digits = bytes.next().filter(|digits| digits.len() == 2)?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    (bytes.next().is_none() && address[0] & 1 == 0 && address != [0; 6]).then_some(address)
}

/// The ports of the console; none = there is no console.
pub(crate) fn consoles(texts: &[String]) -> Result<Vec<ConsolePort>, ConfigError> {
    if texts.len() > MAX_PORTS {
        return Err(ConfigError::value("console", format!("given {} times", texts.len()), "at most 7 ports"));
    }
    let ports: Vec<ConsolePort> = texts.iter().map(|text| port(text)).collect::<Result<_, _>>()?;
    for (number, port) in ports.iter().enumerate() {
        if port.name.is_some() && ports.iter().take(number).any(|other| other.name == port.name) {
            let name = port.name.as_deref().unwrap_or_default();
            return Err(ConfigError::value("console name", name, "another for each port"));
        }
    }
    Ok(ports)
}

fn port(text: &str) -> Result<ConsolePort, ConfigError> {
    let mut options = Options::new("console", text, CONSOLE_ALLOWED);
    let port = ConsolePort { sink: sink(&mut options)?, name: options.text("name")? };
    if port.name.as_deref().is_some_and(|name| !is_name(name, PORT_NAME_BYTES)) {
        return Err(options.refused());
    }
    options.end()?;
    Ok(port)
}

pub(crate) fn balloon(text: &str) -> Result<Balloon, ConfigError> {
    let mut options = Options::new("balloon", text, BALLOON_ALLOWED);
    let size = options
        .number::<ByteSize>("size", |size| size.0.is_multiple_of(4096) && size.0 >> 12 <= u32::MAX.into())?;
    let mut switch = |name, otherwise| options.choice(name, &SWITCH).map(|set| set.unwrap_or(otherwise));
    let balloon = Balloon {
        size: size.map_or(0, |size| size.0),
        deflate_on_oom: switch("deflate-on-oom", true)?,
        statistics: switch("statistics", true)?,
        reporting: switch("reporting", true)?,
    };
    options.end()?;
    Ok(balloon)
}

pub(crate) fn vsock(text: &str) -> Result<Vsock, ConfigError> {
    let mut options = Options::new("vsock", text, VSOCK_ALLOWED);
    let cid = options.number("cid", |cid| (3..u32::MAX).contains(cid))?.ok_or_else(|| options.refused())?;
    let vsock = Vsock { cid, path: options.path("path")? };
    options.end()?;
    Ok(vsock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_sinks_are_read() {
        let file = StreamSink::File { path: "/a".into(), limit: 1 << 20 };
        assert_eq!(serial("file=/a,limit=1M").unwrap().sink, file);
        assert_eq!(serial("socket=/s").unwrap().sink, StreamSink::Socket { path: "/s".into() });
        assert!(serial("stdio,rate=1K").unwrap().limits.bytes.is_some());
        for wrong in ["file=", "file=/a,limit=x", "tty", "", "socket=/s,limit=1M"] {
            assert!(serial(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nets_are_read() {
        let nets =
            nets(&["tap=tap0,mac=02:00:00:00:00:0f,queues=2,mtu=1400,offloads=off".into(), "passt".into()]);
        let nets = nets.unwrap();
        assert_eq!(nets[0].backend, NetBackend::Tap("tap0".into()));
        assert_eq!((nets[0].mac, nets[0].queues, nets[0].mtu), (Some([2, 0, 0, 0, 0, 15]), 2, Some(1400)));
        assert_eq!((nets[1].id.as_str(), nets[1].offloads), ("net1", false));
        for wrong in [
            "",
            "tap",
            "tap=",
            "tap=a/b",
            "tap=0123456789abcdef",
            "passt,tap=a",
            "tap=a,mac=01:00:00:00:00:00",
            "tap=a,mac=02:00",
            "tap=a,queues=8",
            "passt,queues=2",
            "tap=a,mtu=67",
            "tap=a,id=",
            "tap=a,x=1",
        ] {
            assert!(super::nets(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(super::nets(&["tap=a,id=net1".into(), "tap=b".into()]).is_err());
    }

    #[test]
    fn the_rest_is_read() {
        let ports = consoles(&["stdio".into(), "socket=/s,name=agent".into()]).unwrap();
        assert_eq!(ports[1].name.as_deref(), Some("agent"));
        assert!(consoles(&["null,name=a".into(), "null,name=a".into()]).is_err());
        assert!(consoles(&vec!["null".to_owned(); 8]).is_err());
        let balloon = balloon("size=64M,reporting=off").unwrap();
        assert_eq!((balloon.size, balloon.deflate_on_oom, balloon.reporting), (64 << 20, true, false));
        assert!(super::balloon("size=1").is_err() && super::balloon("64M").is_err());
        assert_eq!(vsock("cid=3,path=/v").unwrap(), Vsock { cid: 3, path: "/v".into() });
        assert!(vsock("cid=2,path=/v").is_err() && vsock("cid=3").is_err());
        assert!(rng("").unwrap() == Limits::default() && rng("rate=1K,ops=5").is_ok() && rng("x").is_err());
    }
}
