//! The VM's control socket: where `cellblock ps`, `balloon` and `restart` ask.
//!
//! It is an abstract Unix socket, `cellblock/<uid>/<id>`: the kernel removes it with the front, however that ends, so
//! nothing is left behind; binding it is also what makes an id unique. Abstract names have no permissions, so every
//! peer is checked by its credentials: the VM's own user or root.
//!
//! A client sends one line of JSON ([`What`] and a version), gets one ([`Answer`] and a version), and that is all. The front never waits for it: what it
//! sends too slowly, or does not read, is its own loss.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use cellblock_supervisor::death::Death;
use cellblock_supervisor::link::{Pause, Status};
use cellblock_wire::control::BalloonReport;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde::{Deserialize, Serialize};

use super::files;
use crate::security::Declaration;

/// The version of what is said here. A request of another is refused.
const VERSION: u32 = 1;
/// Clients at a time; more are closed unanswered.
const MAX_CLIENTS: usize = 8;
/// The longest request, in bytes.
const MAX_REQUEST: usize = 1024;
/// How long one client's request and the VM's answer may take together: the guest has half a second of it for its balloon's
/// statistics, the rest is for a host that is busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for an upgrade, whose steps have times of their own.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(15);

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<T> {
    version: u32,
    #[serde(flatten)]
    what: T,
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum What {
    /// The VM's processes and devices.
    Status,
    /// The balloon, as it is.
    Balloon {
        /// The size that it shall have from now on, in pages of 4 KiB.
        set: Option<u32>,
    },
    /// How a worker died.
    Death {
        /// The device's place in the status.
        device: u32,
        /// The worker's incarnation.
        generation: u32,
    },
    /// A new worker for a device.
    Restart {
        /// Its place in the status.
        device: u32,
        /// Which worker is not wanted any more: if it is gone already, nothing is done.
        generation: u32,
    },
    /// Workers of its own again for a device that has failed.
    Revive {
        /// Its place in the status.
        device: u32,
        /// Which tombstone is not wanted any more.
        generation: u32,
    },
    /// A worker of another binary for a device; with one descriptor, the binary, or two, the binary and its start program.
    Upgrade {
        /// The device's place in the status.
        device: u32,
        /// Which worker is to be relieved.
        generation: u32,
    },
    /// Stop everything that runs in the VM, where it can go on later.
    Pause,
    /// Go on.
    Resume,
}

/// What a VM says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// To [`What::Status`].
    Status(Report),
    /// To [`What::Balloon`].
    Balloon(BalloonReport),
    /// To [`What::Death`]; `None` = it lives, or that is too long ago.
    Death(Option<Death>),
    /// It was told, to [`What::Restart`] and [`What::Revive`]; it is done, to [`What::Pause`] and [`What::Resume`].
    Done,
    /// To [`What::Upgrade`]: how the device was without a worker.
    Upgraded(Pause),
    /// No: why.
    Refused(String),
}

/// What a VM says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The VM's name.
    pub id: String,
    /// The front process: `cellblock run`.
    pub front: u32,
    /// The supervisor process.
    pub supervisor: i32,
    /// Init of the VM's pid namespace; without one the spawner.
    pub init: i32,
    /// What its processes were started with.
    pub declared: Option<Declaration>,
    /// Devices and vCPUs.
    #[serde(flatten)]
    pub status: Status,
}

/// The abstract name's prefix for all VMs of all users.
pub(crate) const PREFIX: &str = "cellblock/";
/// How much longer a client waits than the front.
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// Asks VM `id` of user `uid`.
///
/// # Errors
/// There is no such VM, the name is somebody else's, or it does not answer.
pub(crate) fn ask(uid: u32, id: &str, what: What) -> io::Result<Answer> {
    ask_with(uid, id, what, &[])
}

/// As [`ask`], with `files` for the VM.
///
/// # Errors
/// As there.
pub(crate) fn ask_with(uid: u32, id: &str, what: What, files: &[BorrowedFd<'_>]) -> io::Result<Answer> {
    let stream = UnixStream::connect_addr(&address(uid, id)?)?;
    // Anybody may bind an abstract name: believe it only if its owner is who the name says.
    let owner = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
    if owner != uid {
        return Err(io::Error::other(format!("its socket belongs to uid {owner}")));
    }
    stream.set_read_timeout(Some(patience(what) + CLIENT_PATIENCE))?;
    let mut line = serde_json::to_vec(&Line { version: VERSION, what })?;
    line.push(b'\n');
    files::send(&stream, &line, files)?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text)?;
    Ok(serde_json::from_str::<Line<Answer>>(&text)?.what)
}

fn address(uid: u32, id: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{PREFIX}{uid}/{id}"))
}

/// The server's end. Readable, as a descriptor, when [`take`](Self::take) has something to do.
pub(crate) struct ControlSocket {
    listener: UnixListener,
    uid: u32,
    clients: Vec<Client>,
    declared: Option<Declaration>,
    /// Holds the listener, the timer and each client that still speaks.
    epoll: OwnedFd,
    timer: OwnedFd,
}

struct Client {
    stream: UnixStream,
    /// What came with its request.
    files: Vec<OwnedFd>,
    /// The number that this was offered to the spawner under.
    offer: Option<u32>,
    stage: Stage,
    until: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// So much of its request is here.
    Speaks(Vec<u8>),
    /// For the answer.
    Waits(What),
    /// It has it.
    Done,
}

impl ControlSocket {
    /// Takes the name `id` for this user.
    ///
    /// # Errors
    /// A VM of this name runs already, or the socket cannot be made.
    pub(crate) fn bind(id: &str) -> io::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let listener = UnixListener::bind_addr(&address(uid, id)?)?;
        listener.set_nonblocking(true)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(0), EventFlags::IN)?;
        Ok(ControlSocket { listener, uid, clients: Vec::new(), declared: None, epoll, timer })
    }

    /// Takes what clients have sent, and sends those away whose time is over. What the VM is to be asked; its answers go to
    /// [`answer`](Self::answer).
    pub(crate) fn take(&mut self) -> Vec<What> {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.accept();
        let mut asked = Vec::new();
        for client in &mut self.clients {
            match client.listen() {
                Ok(None) => {}
                Ok(Some(what)) => {
                    // It is deaf from now on: its hanging up would be told for ever.
                    let _ = epoll::delete(&self.epoll, &client.stream);
                    client.until += patience(what).saturating_sub(PATIENCE);
                    asked.push(what);
                }
                Err(reason) => client.say(&Answer::Refused(reason)),
            }
        }
        let now = Instant::now();
        for late in self.clients.iter_mut().filter(|client| client.until <= now) {
            let why = match late.stage {
                Stage::Speaks(_) => "the request did not come in time",
                Stage::Waits(_) | Stage::Done => "the VM did not answer in time",
            };
            late.say(&Answer::Refused(why.to_owned()));
        }
        self.tidy();
        asked
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let peer = rustix::net::sockopt::socket_peercred(&stream).map(|peer| peer.uid.as_raw());
            let known = peer.is_ok_and(|uid| uid == 0 || uid == self.uid);
            let ready = || -> io::Result<()> {
                stream.set_nonblocking(true)?;
                Ok(epoll::add(&self.epoll, &stream, EventData::new_u64(0), EventFlags::IN)?)
            };
            if known && self.clients.len() < MAX_CLIENTS && ready().is_ok() {
                let until = Instant::now() + PATIENCE;
                self.clients.push(Client {
                    stream,
                    files: Vec::new(),
                    offer: None,
                    stage: Stage::Speaks(Vec::new()),
                    until,
                });
            }
        }
    }

    /// The timer fires when the first client's time is over.
    fn arm(&self) {
        let Some(first) = self.clients.iter().map(|client| client.until).min() else { return };
        let left = first.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let it_value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        // Without it a client that says nothing stays until the next one comes.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    /// Forgets the clients that have their answer. A closed descriptor leaves the epoll by itself.
    fn tidy(&mut self) {
        self.clients.retain(|client| client.stage != Stage::Done);
        self.arm();
    }

    /// Answers everybody who asked what `of` accepts.
    fn answer(&mut self, of: impl Fn(What) -> bool, answer: &Answer) {
        for client in &mut self.clients {
            if matches!(client.stage, Stage::Waits(what) if of(what)) {
                client.say(answer);
            }
        }
        self.tidy();
    }

    /// From now on the status says what the processes were started with.
    pub(crate) fn declare(&mut self, declaration: Declaration) {
        self.declared = Some(declaration);
    }

    /// Answers everybody who asked for the status.
    pub(crate) fn answer_status(&mut self, id: &str, supervisor: i32, init: i32, status: Status) {
        let (front, declared) = (std::process::id(), self.declared.clone());
        let report = Report { id: id.into(), front, supervisor, init, declared, status };
        self.answer(|what| what == What::Status, &Answer::Status(report));
    }

    /// Answers everybody who asked for this death.
    pub(crate) fn answer_death(&mut self, device: u32, generation: u32, death: Option<Death>) {
        self.answer(|what| what == What::Death { device, generation }, &Answer::Death(death));
    }

    /// Answers everybody who asked for the balloon.
    pub(crate) fn answer_balloon(&mut self, balloon: Option<BalloonReport>) {
        let none =
            || Answer::Refused("it has no balloon; give it one with `cellblock run --balloon …`".into());
        let answer = balloon.map_or_else(none, Answer::Balloon);
        self.answer(|what| matches!(what, What::Balloon { .. }), &answer);
    }

    /// Answers everybody who asked for a new worker.
    pub(crate) fn answer_restart(&mut self) {
        self.answer(|what| matches!(what, What::Restart { .. } | What::Revive { .. }), &Answer::Done);
    }

    /// The first who asked for `what`, an upgrade, and whose binary was not offered yet.
    fn first_not_offered(&mut self, what: What) -> Option<&mut Client> {
        let mut waiting = self.clients.iter_mut().filter(|client| client.stage == Stage::Waits(what));
        waiting.find(|client| client.offer.is_none())
    }

    /// The files that came with `what`; [`note_offer`](Self::note_offer) or [`refuse_upgrade`](Self::refuse_upgrade) follows.
    pub(crate) fn take_files(&mut self, what: What) -> Vec<OwnedFd> {
        self.first_not_offered(what).map(|client| std::mem::take(&mut client.files)).unwrap_or_default()
    }

    /// What came with `what` was offered to the spawner as number `offer`.
    pub(crate) fn note_offer(&mut self, what: What, offer: u32) {
        if let Some(client) = self.first_not_offered(what) {
            client.offer = Some(offer);
        }
    }

    /// What came with `what` is not offered.
    pub(crate) fn refuse_upgrade(&mut self, what: What, reason: String) {
        if let Some(client) = self.first_not_offered(what) {
            client.say(&Answer::Refused(reason));
        }
        self.tidy();
    }

    /// Answers whose binary was offered as number `offer`.
    pub(crate) fn answer_upgrade(&mut self, offer: u32, result: Result<Pause, String>) {
        let answer = result.map_or_else(Answer::Refused, Answer::Upgraded);
        if let Some(client) = self.clients.iter_mut().find(|client| client.offer == Some(offer)) {
            client.say(&answer);
        }
        self.tidy();
    }

    /// Answers everybody who asked for a pause: it is there, or why not.
    pub(crate) fn answer_pause(&mut self, paused: Result<(), String>) {
        let answer = paused.map_or_else(Answer::Refused, |()| Answer::Done);
        self.answer(|what| what == What::Pause, &answer);
    }

    /// Sends everybody away who asked for a pause or its end.
    pub(crate) fn refuse_pause(&mut self, why: &str) {
        self.answer(|what| matches!(what, What::Pause | What::Resume), &Answer::Refused(why.to_owned()));
    }

    /// Answers everybody who asked for a pause's end.
    pub(crate) fn answer_resume(&mut self) {
        self.answer(|what| what == What::Resume, &Answer::Done);
    }

    /// Sends everybody away who waits: there is nobody to ask any more.
    pub(crate) fn refuse(&mut self) {
        self.answer(|_| true, &Answer::Refused("the VM ends".to_owned()));
    }
}

impl Client {
    /// Takes what there is: a whole request, nothing yet, or why there will be none.
    fn listen(&mut self) -> Result<Option<What>, String> {
        let Stage::Speaks(heard) = &mut self.stage else { return Ok(None) };
        let mut piece = [0; 256];
        loop {
            match files::receive(&self.stream, &mut piece, &mut self.files) {
                Ok(0) => return Err("the request has no end".to_owned()),
                Ok(length) => heard.extend(piece.iter().take(length)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
            if let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
                let what = request(heard.get(..end).unwrap_or_default())?;
                self.stage = Stage::Waits(what);
                return Ok(Some(what));
            }
            if heard.len() > MAX_REQUEST {
                return Err(format!("the request has more than {MAX_REQUEST} bytes"));
            }
        }
    }

    /// One line, and it is done.
    fn say(&mut self, answer: &Answer) {
        let line = Line { version: VERSION, what: answer };
        if let Ok(mut line) = serde_json::to_vec(&line) {
            line.push(b'\n');
            // A client that does not read loses its answer, nothing else.
            let _ = self.stream.write_all(&line);
        }
        self.stage = Stage::Done;
    }
}

/// How long the front works at `what`.
fn patience(what: What) -> Duration {
    if matches!(what, What::Upgrade { .. }) { UPGRADE_PATIENCE } else { PATIENCE }
}

fn request(line: &[u8]) -> Result<What, String> {
    #[derive(Deserialize)]
    struct Anything {}
    let wrong = |error: serde_json::Error| format!("the request makes no sense: {error}");
    let Line { version, what: Anything {} } = serde_json::from_slice(line).map_err(wrong)?;
    if version != VERSION {
        return Err(format!("the request has version {version}; this VM's program speaks {VERSION}"));
    }
    serde_json::from_slice::<Line<What>>(line).map(|line| line.what).map_err(wrong)
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn socket(name: &str) -> (ControlSocket, u32, String) {
        let id = format!("control-{}-{name}", std::process::id());
        (ControlSocket::bind(&id).unwrap(), rustix::process::geteuid().as_raw(), id)
    }

    /// Serves until somebody has asked something.
    fn asked(socket: &mut ControlSocket) -> What {
        loop {
            wait(socket);
            if let Some(what) = socket.take().pop() {
                return what;
            }
        }
    }

    fn wait(socket: &ControlSocket) {
        use rustix::event::{PollFd, PollFlags, poll};
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience)).unwrap(), 1);
    }

    fn connect(uid: u32, id: &str, words: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect_addr(&address(uid, id).unwrap()).unwrap();
        stream.write_all(words).unwrap();
        stream
    }

    fn reply(mut stream: UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn each_client_gets_the_answer_to_what_it_asked() {
        let (mut socket, uid, id) = socket("two");
        let (one, other) = (id.clone(), id.clone());
        let status = thread::spawn(move || ask(uid, &one, What::Status));
        assert_eq!(asked(&mut socket), What::Status);
        let set = What::Balloon { set: Some(7) };
        let balloon = thread::spawn(move || ask(uid, &other, set));
        assert_eq!(asked(&mut socket), set);
        socket.answer_balloon(Some(BalloonReport { target: 7, ..BalloonReport::default() }));
        assert!(matches!(balloon.join().unwrap().unwrap(), Answer::Balloon(BalloonReport { target: 7, .. })));
        socket.answer_status(&id, 1, 2, Status::default());
        assert!(matches!(status.join().unwrap().unwrap(), Answer::Status(report) if report.supervisor == 1));
        assert!(socket.clients.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_told_why() {
        let (mut socket, uid, id) = socket("nonsense");
        let long = vec![b' '; MAX_REQUEST + 1];
        for (words, why) in [
            (&b"{}\n"[..], "missing field `version`"),
            (b"{\"version\":2}\n", "version 2"),
            (b"{\"version\":1,\"request\":\"reboot\"}\n", "unknown variant `reboot`"),
            (b"\xff\n", "makes no sense"),
            (&long, "more than 1024 bytes"),
        ] {
            let client = connect(uid, &id, words);
            wait(&socket);
            assert_eq!(socket.take(), []);
            let said = reply(client);
            assert!(said.contains("refused") && said.contains(why), "{said}");
        }
        let client = connect(uid, &id, b"{");
        client.shutdown(std::net::Shutdown::Write).unwrap();
        wait(&socket);
        assert_eq!(socket.take(), []);
        assert!(reply(client).contains("no end"));
    }

    #[test]
    fn a_client_that_says_nothing_is_sent_away_and_the_ninth_at_once() {
        let (mut socket, uid, id) = socket("silent");
        let silent: Vec<_> = (0..MAX_CLIENTS).map(|_| connect(uid, &id, b"")).collect();
        assert_eq!(socket.take(), []);
        let ninth = connect(uid, &id, b"");
        assert_eq!(socket.take(), []);
        assert_eq!(reply(ninth), "");
        while !socket.clients.is_empty() {
            wait(&socket);
            assert_eq!(socket.take(), []);
        }
        for client in silent {
            assert!(reply(client).contains("did not come in time"));
        }
    }

    #[test]
    fn an_upgrade_is_answered_to_whom_it_is_of() {
        let (mut socket, uid, id) = socket("upgrades");
        let what = What::Upgrade { device: 1, generation: 2 };
        let line = serde_json::to_string(&Line { version: VERSION, what }).unwrap() + "\n";
        let [first, second, third] = [5, 6, 7].map(|offer| {
            let client = connect(uid, &id, line.as_bytes());
            assert_eq!(asked(&mut socket), what);
            socket.note_offer(what, offer);
            client
        });
        let fourth = connect(uid, &id, line.as_bytes());
        assert_eq!(asked(&mut socket), what);
        socket.refuse_upgrade(what, "of the fourth".to_owned());
        socket.answer_upgrade(6, Err("of the second".to_owned()));
        socket.answer_upgrade(8, Err("of nobody".to_owned()));
        socket.answer_upgrade(5, Err("of the first".to_owned()));
        socket.refuse();
        for (client, said) in [
            (first, "of the first"),
            (second, "of the second"),
            (third, "the VM ends"),
            (fourth, "of the fourth"),
        ] {
            let reply = reply(client);
            assert!(reply.contains(said), "{reply} instead of {said}");
        }
    }

    #[test]
    fn a_name_is_taken_once() {
        let (_socket, _, id) = socket("name");
        assert_eq!(ControlSocket::bind(&id).map(|_| ()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
