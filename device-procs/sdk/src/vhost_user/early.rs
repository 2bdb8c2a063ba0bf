//! The one message that is taken apart here: QEMU's network front end enables queues before it has accepted any feature, which
//! the crate holds against it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg};

/// `VHOST_USER_SET_VRING_ENABLE`: a queue's number and 1 or 0, 32 bits each, behind a header of three words: request, flags,
/// bytes that follow.
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const WORDS: usize = 5;

/// A message that enables or disables a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Enable {
    pub(super) queue: u32,
    pub(super) enable: bool,
    /// The front end waits for an answer.
    needs_reply: bool,
}

impl Enable {
    /// Takes the next message of `stream`, if it is one.
    ///
    /// # Errors
    /// The connection's.
    pub(super) fn take(stream: &OwnedFd) -> Result<Option<Enable>, Errno> {
        let Some(enable) = Enable::decode(&receive(stream, RecvFlags::PEEK)?) else { return Ok(None) };
        receive(stream, RecvFlags::empty())?;
        Ok(Some(enable))
    }

    fn decode(bytes: &[u8; 4 * WORDS]) -> Option<Enable> {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let [request, flags, size, queue, enable] = words;
        let known = request == SET_VRING_ENABLE && flags & !NEED_REPLY == VERSION && size == 8 && enable <= 1;
        known.then_some(Enable { queue, enable: enable == 1, needs_reply: flags & NEED_REPLY != 0 })
    }

    /// Says that it was done, if the front end wants to know.
    ///
    /// # Errors
    /// The connection's.
    pub(super) fn reply(&self, stream: &OwnedFd) -> Result<(), Errno> {
        if !self.needs_reply {
            return Ok(());
        }
        let mut bytes = [0; 4 * WORDS];
        for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip([SET_VRING_ENABLE, VERSION | REPLY, 8])
        {
            *to = word.to_le_bytes();
        }
        let mut none = SendAncillaryBuffer::default();
        sendmsg(stream, &[IoSlice::new(&bytes)], &mut none, SendFlags::NOSIGNAL).map(drop)
    }
}

/// As many bytes as the message has; less come as zeroes, which is none.
fn receive(stream: &OwnedFd, flags: RecvFlags) -> Result<[u8; 4 * WORDS], Errno> {
    let mut bytes = [0; 4 * WORDS];
    // Descriptors beside it are not this message's: without room for them the kernel closes them.
    let mut none = RecvAncillaryBuffer::default();
    match recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut none, flags) {
        Ok(_) | Err(Errno::INTR) => Ok(bytes),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn it_is_taken_and_answered_and_nothing_else_is() {
        let (mut front_end, ours) = UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        front_end.write_all(&words(&[18, 9, 8, 1, 1])).unwrap();
        let enable = Enable::take(&ours).unwrap().unwrap();
        assert_eq!(enable, Enable { queue: 1, enable: true, needs_reply: true });
        enable.reply(&ours).unwrap();
        let mut answer = [0; 20];
        front_end.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..], words(&[18, 5, 8, 0, 0]));
        // Another request, a reply, another length, neither 0 nor 1.
        for other in [[17, 1, 8, 1, 1], [18, 5, 8, 1, 1], [18, 1, 4, 1, 1], [18, 1, 8, 1, 2]] {
            front_end.write_all(&words(&other)).unwrap();
            assert_eq!(Enable::take(&ours).unwrap(), None);
            let left = receive(&ours, RecvFlags::empty()).unwrap();
            assert_eq!(left[..], words(&other), "it was only looked at");
        }
    }
}
