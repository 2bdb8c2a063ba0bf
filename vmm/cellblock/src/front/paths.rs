//! Opening what the user names where others may have been first.
//!
//! Each path is walked once, and from then on there is its descriptor; what is looked at is the open file. As root, whoever can write to the
//! folder could otherwise have the VM read, write to, or run, what is not his: so for root any link on the way must be root's own. The
//! kernel sees to it (`openat2` with `RESOLVE_NO_SYMLINKS`); root's own links are followed here, one by one. The names of this process' own
//! descriptors are always followed, and an ordinary user's paths as the kernel does.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The most links on the way to a file, as the kernel's.
const MAX_LINKS: usize = 40;
/// A folder, or anything else, to be named by its descriptor.
pub(crate) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// What is at `path`, opened with `flags`.
///
/// # Errors
/// It cannot be opened, or is not to be followed.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    open_below(CWD, path, flags)
}

/// The same, of a path that begins at `folder`.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_below(folder: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<File> {
    open_as(folder, path, flags, Mode::empty(), trusted(path))
}

/// The file at `path` for appending, made if there is none. For root the last name of the path may be no link, of either kind, and what
/// is there must be a file or a terminal.
///
/// # Errors
/// It cannot be opened, or is not to be followed.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    open_log_as(path, trusted(path))
}

/// Whose links alone are followed along `path`; `None`: all that the kernel follows.
fn trusted(path: &Path) -> Option<u32> {
    (rustix::process::geteuid().is_root() && !names_own_descriptor(path)).then_some(0)
}

/// `/dev/stdout`, `/dev/fd/N`, `/proc/self/fd/N`: links that only root makes, to what this process has open.
fn names_own_descriptor(path: &Path) -> bool {
    let below = |folder| path.to_str().and_then(|path| path.strip_prefix(folder));
    let number = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    below("/dev/").is_some_and(|name| matches!(name, "stdin" | "stdout" | "stderr"))
        || below("/dev/fd/").or_else(|| below("/proc/self/fd/")).is_some_and(number)
}

/// As [`open_log`], with the one whose links alone are followed.
fn open_log_as(path: &Path, owner: Option<u32>) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let mode = Mode::from_raw_mode(0o666);
    if owner.is_none() {
        return open_as(CWD, path, flags, mode, None);
    }
    // A FIFO that somebody has put there would make it wait.
    let wary = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_as(CWD, path, flags | wary, mode, owner)?;
    let found = file.metadata()?;
    match FileType::from_raw_mode(found.mode()) {
        FileType::RegularFile if found.nlink() > 1 => Err(io::Error::other(format!(
            "it has {} names, of which one may be somebody else's; root writes to files with one",
            found.nlink()
        ))),
        FileType::RegularFile | FileType::CharacterDevice => {
            rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
            Ok(file)
        }
        kind => Err(io::Error::other(format!("it is neither a file nor a terminal, but a {kind:?}"))),
    }
}

/// Opens `path`, which begins at `folder`, along no links but those of `owner`, if there is one.
fn open_as(
    folder: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    owner: Option<u32>,
) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC;
    let opened = match owner {
        Some(owner) => open_along(folder, path, flags, mode, owner)?,
        None => rustix::fs::openat(folder, path, flags, mode)?,
    };
    Ok(opened.into())
}

fn open_along(
    folder: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    owner: u32,
) -> io::Result<OwnedFd> {
    let root = || rustix::fs::open("/", FOLDER | OFlags::CLOEXEC, Mode::empty());
    let plain = |folder: &OwnedFd, path: &Path, flags, mode| {
        rustix::fs::openat2(folder, path, flags, mode, ResolveFlags::NO_SYMLINKS)
    };
    let mut folder = if path.is_absolute() {
        root()?
    } else {
        rustix::fs::openat(folder, ".", FOLDER | OFlags::CLOEXEC, Mode::empty())?
    };
    let mut rest = names(path);
    for _ in 0..=MAX_LINKS {
        let whole: PathBuf = if rest.is_empty() { ".".into() } else { rest.iter().collect() };
        match plain(&folder, &whole, flags, mode) {
            Err(Errno::LOOP) => {}
            opened => return Ok(opened?),
        }
        let (name, link) = first_link(&mut folder, &mut rest, plain)?;
        let of = rustix::fs::fstat(&link)?.st_uid;
        if of != owner {
            return Err(io::Error::other(format!(
                "{} in its path is a symbolic link of uid {of}, which root does not follow; name what it leads to",
                name.display()
            )));
        }
        if rest.is_empty() && flags.contains(OFlags::NOFOLLOW) {
            return Err(io::Error::other(
                "it is a symbolic link, which root does not follow; name the file itself",
            ));
        }
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
        if target.is_absolute() {
            folder = root()?;
        }
        let mut further = names(target);
        further.append(&mut rest);
        rest = further;
    }
    Err(Errno::LOOP.into())
}

/// The first link along `rest`, and its name. Then `folder` is where it is, and `rest` what comes after it.
fn first_link(
    folder: &mut OwnedFd,
    rest: &mut VecDeque<OsString>,
    plain: impl Fn(&OwnedFd, &Path, OFlags, Mode) -> rustix::io::Result<OwnedFd>,
) -> io::Result<(OsString, OwnedFd)> {
    while let Some(name) = rest.pop_front() {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = plain(folder, Path::new(&name), flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) == FileType::Symlink {
            return Ok((name, next));
        }
        *folder = next;
    }
    Err(io::Error::other("somebody changes its path meanwhile"))
}

/// The names of `path`, one after the other.
fn names(path: &Path) -> VecDeque<OsString> {
    let named = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(named).map(|part| part.as_os_str().to_owned()).collect()
}

/// The file at `path`, which begins at `folder`, and of which a VM's process is made: only root and this user may be able to change it. An
/// ordinary user is taken to know who is in his file's group.
///
/// # Errors
/// It cannot be opened, is no file, or others may write to it.
pub(crate) fn open_program(folder: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let file = open_below(folder, path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let found = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let by_group = own == 0 && found.gid() != 0 && found.mode() & 0o020 != 0;
    if ![0, own].contains(&found.uid()) || found.mode() & 0o002 != 0 || by_group {
        return Err(io::Error::other(format!(
            "others than root and this user can change it (owner {}, group {}, mode {:o})",
            found.uid(),
            found.gid(),
            found.mode() & 0o7777
        )));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use rustix::fs::RenameFlags;

    /// As a launcher that follows a link as root writes where the link's maker may not: CVE-2026-1386.
    #[test]
    fn cve_2026_1386_root_follows_nobodys_links() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let at = |name: &str| folder.path().join(name);
        let (secret, link, hard) = (at("secret"), at("link"), at("hard"));
        let refused = |path: &Path, owner| open_log_as(path, Some(owner)).unwrap_err().to_string();
        fs::write(&secret, "kept").unwrap();
        symlink(&secret, &link).unwrap();
        assert!(refused(&link, own).contains("symbolic link"));
        assert!(open_log_as(&link, None).is_ok(), "an ordinary user's rights are his own");
        assert!(open_log_as(&secret, Some(own)).is_ok());
        fs::hard_link(&secret, &hard).unwrap();
        assert!(refused(&hard, own).contains("2 names"));
        // A link to nothing makes nothing.
        let (nothing, dangling) = (at("nothing"), at("dangling"));
        symlink(&nothing, &dangling).unwrap();
        assert!(refused(&dangling, own).contains("symbolic link") && !nothing.exists());
        // Nor is one followed on the way, but the right user's: absolute, relative, and in a ring.
        for (name, target) in [("away", folder.path()), ("up", Path::new("../")), ("ring", Path::new("ring"))]
        {
            symlink(target, at(name)).unwrap();
        }
        assert!(refused(&at("away/new"), own + 1).contains("away in its path is a symbolic link of uid"));
        assert!(!at("new").exists());
        let back = at("up").join(folder.path().file_name().unwrap()).join("away/new");
        assert!(open_log_as(&back, Some(own)).is_ok() && at("new").exists());
        assert!(open_log_as(&at("ring/new"), Some(own)).is_err());
        assert_eq!(fs::read(&secret).unwrap(), b"kept");
    }

    #[test]
    fn what_is_read_is_reached_by_the_right_users_links_alone() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("images")).unwrap();
        fs::write(at("images/1"), "one").unwrap();
        symlink("images/1", at("current")).unwrap();
        symlink(folder.path(), at("away")).unwrap();
        let read = |path: &Path, owner| -> io::Result<String> {
            let mut text = String::new();
            open_as(CWD, path, OFlags::RDONLY, Mode::empty(), owner)?.read_to_string(&mut text)?;
            Ok(text)
        };
        for path in ["images/1", "images/../current", "away/away/current", "current"] {
            for owner in [None, Some(own)] {
                assert_eq!(read(&at(path), owner).unwrap(), "one", "{path} {owner:?}");
            }
            let error = read(&at(path), Some(own + 1)).map_err(|error| error.to_string());
            match path {
                "images/1" => assert_eq!(error.unwrap(), "one"),
                _ => assert!(
                    error.unwrap_err().contains(&format!("is a symbolic link of uid {own}, which")),
                    "{path}"
                ),
            }
        }
        // Below a folder that is open, wherever its name leads by now.
        let images = open(&at("images"), FOLDER).unwrap();
        fs::rename(at("images"), at("moved")).unwrap();
        symlink("/nowhere", at("images")).unwrap();
        let below = |path: &str| open_below(images.as_fd(), Path::new(path), OFlags::RDONLY);
        assert!(below("1").is_ok() && below("../moved/1").is_ok());
        assert_eq!(below("2").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(open_as(CWD, &at("moved/1/x"), OFlags::RDONLY, Mode::empty(), Some(own)).is_err());
    }

    /// Who may write to the folder exchanges a file, or the folder that it is in, for a link while root opens it.
    #[test]
    fn a_link_that_is_swapped_in_is_never_followed() {
        // Nobody's links are right.
        let stranger = Some(rustix::process::geteuid().as_raw() + 1);
        for (one, other) in [("real", "link"), ("real/image", "real/link")] {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            for (name, text) in [("real", "own"), ("secret", "secret")] {
                fs::create_dir(at(name)).unwrap();
                fs::write(at(name).join("image"), text).unwrap();
            }
            symlink("secret", at("link")).unwrap();
            symlink("../secret/image", at("real/link")).unwrap();
            let stop = AtomicBool::new(false);
            let swap = |one: PathBuf, other: PathBuf| {
                while !stop.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
            };
            let (mut opened, mut refused) = (0, 0);
            let strange = std::thread::scope(|scope| {
                scope.spawn(|| swap(at(one), at(other)));
                let end = Instant::now() + Duration::from_secs(20);
                let mut text = String::new();
                while (opened < 200 || refused < 200) && Instant::now() < end {
                    text.clear();
                    match open_as(CWD, &at("real/image"), OFlags::RDONLY, Mode::empty(), stranger) {
                        Ok(mut file) => {
                            file.read_to_string(&mut text).unwrap_or_default();
                            opened += 1;
                            if text != "own" {
                                break;
                            }
                        }
                        Err(_) => refused += 1,
                    }
                }
                stop.store(true, Ordering::Relaxed);
                text
            });
            assert!(strange.is_empty() || strange == "own", "{one}: root has read {strange:?}");
            assert!(opened > 0 && refused > 0, "{one}: opened {opened} times, refused {refused} times");
        }
    }

    #[test]
    fn root_writes_to_files_and_terminals_alone() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        // Without a reader, and with one.
        assert!(open_log_as(&fifo, Some(own)).is_err());
        let _reader = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert!(open_log_as(&fifo, Some(own)).unwrap_err().to_string().contains("neither a file nor"));
        assert!(open_log_as(folder.path(), Some(own)).is_err());
        assert!(open_log_as(Path::new("/"), Some(own)).is_err());
        assert!(open_log_as(Path::new("/dev/null"), Some(0)).is_ok());
    }

    #[test]
    fn the_own_descriptors_alone_are_named_by_links() {
        for path in ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/2", "/dev/fd/17", "/proc/self/fd/3"]
        {
            assert!(names_own_descriptor(Path::new(path)), "{path}");
        }
        for path in [
            "/dev/shm/log",
            "/dev/../home/x",
            "/dev/fd/",
            "/dev/fd/1/x",
            "/dev/fd/../shm/x",
            "stdout",
            "/proc/self/fd/x",
        ] {
            assert!(!names_own_descriptor(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_program_that_others_can_change_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "").unwrap();
        let mode = |mode| fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o755);
        assert!(open_program(CWD, &program).is_ok());
        mode(0o757);
        let error = open_program(CWD, &program).unwrap_err().to_string();
        assert!(error.contains("mode 757"), "{error}");
        mode(0o755);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&program, Some(12345), None).unwrap();
            let error = open_program(CWD, &program).unwrap_err().to_string();
            assert!(error.contains("owner 12345"), "{error}");
            std::os::unix::fs::chown(&program, Some(0), Some(12345)).unwrap();
            mode(0o775);
            let error = open_program(CWD, &program).unwrap_err().to_string();
            assert!(error.contains("group 12345, mode 775"), "{error}");
        }
        assert!(open_program(CWD, folder.path()).unwrap_err().to_string().contains("no file"));
    }
}
