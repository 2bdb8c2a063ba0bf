//! The host's network interfaces, by rtnetlink: one request and its answer at a time.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use cellblock_channel::tap::Name;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `IFLA_TUN_NUM_QUEUES` and `IFLA_TUN_NUM_DISABLED_QUEUES` (Linux `include/uapi/linux/if_link.h`).
const QUEUES: [u16; 2] = [8, 9];
/// The longest answer: one interface with all its attributes.
const ANSWER_BYTES: usize = 32 << 10;

/// A network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// Queues of a tap with several that somebody has open.
    pub(crate) queues: u32,
}

/// A conversation with the kernel.
pub(crate) struct Links(OwnedFd);

impl Links {
    /// # Errors
    /// The kernel's.
    pub(crate) fn open() -> io::Result<Links> {
        let socket =
            net::socket_with(net::AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Links(socket))
    }

    /// The interface `name`, if there is one.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn find(&self, name: Name) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(described(&link))),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes interface `index` into use.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        self.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(|_| ())
    }

    /// Gives interface `index` an address, whose first `prefix` bits are its network's.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        (message.header.prefix_len, message.header.index) = (prefix, index);
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        let new = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.ask(RouteNetlinkMessage::NewAddress(message), new).map(|_| ())
    }

    /// The kernel's answer to `question`; none if it only says that it is done.
    fn ask(&self, question: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        net::sendto(&self.0, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = vec![0; ANSWER_BYTES];
        let (length, _) = net::recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())?;
        let bytes = answer.get(..length).unwrap_or_default();
        let answer = NetlinkMessage::deserialize(bytes).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
            _ => Ok(None),
        }
    }
}

fn described(link: &LinkMessage) -> Link {
    let mut found = Link { index: link.header.index, mtu: 0, queues: 0 };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => found.queues = infos.iter().map(queues).sum(),
            _ => {}
        }
    }
    found
}

/// Queues that `info` tells of.
fn queues(info: &LinkInfo) -> u32 {
    let LinkInfo::Data(InfoData::Tun(details)) = info else { return 0 };
    let count = |detail: &InfoTun| {
        let mut bytes = [0; 4];
        if QUEUES.contains(&detail.kind()) && detail.value_len() == bytes.len() {
            detail.emit_value(&mut bytes);
        }
        u32::from_ne_bytes(bytes)
    };
    details.iter().map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_found_by_name() {
        let links = Links::open().unwrap();
        let lo = links.find(Name::new("lo").unwrap()).unwrap().unwrap();
        assert_eq!((lo.index, lo.queues), (1, 0));
        assert!(lo.mtu > 1500, "{lo:?}");
        assert_eq!(links.find(Name::new("no-such-link").unwrap()).unwrap(), None);
    }
}
