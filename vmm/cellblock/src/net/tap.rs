//! `cellblock tap`: taps that stay, for VMs of ordinary users.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cellblock_channel::tap::{Name, attach, set_owner, set_persistent};
use rustix::io::Errno;

use super::links::Links;
use super::{cannot_open, open_tun};
use crate::cli::TapCommand;

/// Makes or deletes a tap.
///
/// # Errors
/// A sentence that says what to do.
pub(crate) fn tap(command: &TapCommand) -> Result<()> {
    match command {
        TapCommand::Create { name, user, address } => create(name, user.as_deref(), address.as_deref()),
        TapCommand::Delete { name } => delete(name),
    }
}

fn create(text: &str, user: Option<&str>, address: Option<&str>) -> Result<()> {
    let name = named(text)?;
    let uid = user.map(uid_of).transpose()?;
    let address = address.map(parse_address).transpose()?;
    let links = Links::open().context("the host's network interfaces cannot be looked up")?;
    ensure!(
        links.find(name)?.is_none(),
        "there is an interface {name} already; delete it first (cellblock tap delete {name}), or choose another name"
    );
    let tap = open_tun().map_err(|errno| anyhow!(cannot_open(errno)))?;
    attach(&tap, name, true).map_err(|errno| privileged(errno, &format!("tap {name} cannot be made")))?;
    let made = || -> Result<()> {
        if let Some(uid) = uid {
            set_owner(&tap, uid).with_context(|| format!("tap {name} cannot be given to user {uid}"))?;
        }
        let link = links.find(name)?.with_context(|| format!("tap {name} is gone again"))?;
        if let Some((address, prefix)) = address {
            let added = links.add_address(link.index, address, prefix);
            added.with_context(|| format!("tap {name} cannot have the address {address}/{prefix}"))?;
        }
        links.set_up(link.index).with_context(|| format!("tap {name} cannot be taken into use"))?;
        // Last: what went wrong before leaves nothing.
        set_persistent(&tap, true).with_context(|| format!("tap {name} cannot be kept"))
    };
    made()
}

fn delete(text: &str) -> Result<()> {
    let name = named(text)?;
    let links = Links::open().context("the host's network interfaces cannot be looked up")?;
    let link = links.find(name)?.with_context(|| format!("there is no interface {name}"))?;
    ensure!(link.queues == 0, "tap {name} is in use; end the VM that has it first");
    let open = || open_tun().map_err(|errno| anyhow!(cannot_open(errno)));
    let mut tap = open()?;
    let mut attached = attach(&tap, name, true);
    if attached == Err(Errno::INVAL) {
        tap = open()?;
        attached = attach(&tap, name, false);
    }
    match attached {
        Ok(()) => set_persistent(&tap, false).with_context(|| format!("tap {name} cannot be deleted")),
        Err(Errno::BUSY) => bail!("tap {name} is in use; end the VM that has it first"),
        Err(Errno::INVAL) => bail!("{name} is no tap interface; it is left as it is"),
        Err(errno) => Err(privileged(errno, &format!("tap {name} cannot be deleted"))),
    }
}

fn named(text: &str) -> Result<Name> {
    Name::new(text).with_context(|| format!("the name is {text:?}; allowed is {}", Name::ALLOWED))
}

fn privileged(errno: Errno, what: &str) -> anyhow::Error {
    match errno {
        Errno::PERM => anyhow!("{what}: this needs root (CAP_NET_ADMIN); try: sudo cellblock tap …"),
        _ => anyhow!("{what}: {errno}"),
    }
}

/// A user by name or number.
fn uid_of(user: &str) -> Result<u32> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let users =
        fs::read_to_string("/etc/passwd").context("/etc/passwd cannot be read; give the user's number")?;
    uid_in(&users, user)
        .with_context(|| format!("there is no user {user:?} in /etc/passwd; give the user's number"))
}

fn uid_in(users: &str, user: &str) -> Option<u32> {
    let uid = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(user)).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    users.lines().find_map(uid)
}

/// `ADDRESS/PREFIX`.
fn parse_address(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = || {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (1..=longest).contains(&prefix).then_some((address, prefix))
    };
    parsed().with_context(|| {
        format!(
            "the address is {text:?}; allowed is an IP address and its network's bits, as 192.168.70.1/24"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_prefix() {
        assert_eq!(parse_address("10.1.2.3/24").unwrap(), ("10.1.2.3".parse().unwrap(), 24));
        assert_eq!(parse_address("fd00::1/64").unwrap().1, 64);
        for text in ["10.1.2.3", "10.1.2.3/33", "10.1.2.3/0", "10.1.2/24", "fd00::1/129", "/24", ""] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn users_are_found_by_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\ncell:x:1000:1000::/home/cell:/bin/sh\nbad:x\n";
        assert_eq!(
            (uid_in(users, "cell"), uid_in(users, "cel"), uid_in(users, "bad")),
            (Some(1000), None, None)
        );
        assert_eq!(uid_of("1234").unwrap(), 1234);
    }
}
