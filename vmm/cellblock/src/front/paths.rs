//! Opening what the user names where others may have been first.
//!
//! Each path is walked once, and from then on there is its descriptor; what is looked at is the open file. As root, whoever can write to the
//! folder could otherwise have the VM write to, or run, what is not his.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags};

/// The most links on the way to a file, as the kernel's.
const MAX_LINKS: usize = 40;

/// The file at `path` for appending, made if there is none. For root the last name of the path may be no link, of either kind, and
/// any other only a link of root's own, as strangers' may lead to what is not theirs; what is there must be a file or a terminal. The
/// names of this process' own descriptors are always followed.
///
/// # Errors
/// It cannot be opened, or is not to be followed.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    let wary = rustix::process::geteuid().is_root() && !names_own_descriptor(path);
    open_log_as(path, wary.then_some(0))
}

/// `/dev/stdout`, `/dev/stderr`, `/dev/fd/N`: links that only root makes, to what this process has open.
fn names_own_descriptor(path: &Path) -> bool {
    let Some(name) = path.to_str().and_then(|path| path.strip_prefix("/dev/")) else { return false };
    let number = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    matches!(name, "stdout" | "stderr") || name.strip_prefix("fd/").is_some_and(number)
}

/// With `owner`, whose links alone are followed; without, as the kernel does.
fn open_log_as(path: &Path, owner: Option<u32>) -> io::Result<File> {
    let Some(owner) = owner else { return OpenOptions::new().append(true).create(true).open(path) };
    let (folder, name) = walk(path, owner)?;
    // A FIFO that somebody has put there would make it wait.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o666)) {
        Err(rustix::io::Errno::LOOP) => {
            return Err(io::Error::other(
                "it is a symbolic link, which root does not follow; name the file itself",
            ));
        }
        opened => File::from(opened?),
    };
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

/// The folder of what `path` names, and its last name: name by name, along no links but those of `owner`.
fn walk(path: &Path, owner: u32) -> io::Result<(OwnedFd, OsString)> {
    let open = |folder: &str| {
        rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let mut folder = open(if path.is_absolute() { "/" } else { "." })?;
    let mut rest = names(path);
    let last = rest.pop_back().ok_or(rustix::io::Errno::ISDIR)?;
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(&folder, &name, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&next)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            folder = next;
            continue;
        }
        if found.st_uid != owner {
            return Err(io::Error::other(format!(
                "{} in its path is a symbolic link of uid {}, which root does not follow; name the folder itself",
                name.display(),
                found.st_uid
            )));
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
        if target.is_absolute() {
            folder = open("/")?;
        }
        let mut further = names(target);
        further.append(&mut rest);
        rest = further;
    }
    Ok((folder, last))
}

/// The names of `path`, one after the other.
fn names(path: &Path) -> VecDeque<OsString> {
    let named = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(named).map(|part| part.as_os_str().to_owned()).collect()
}

/// The file at `path`, of which a VM's process is made: only root and this user may be able to change it. An ordinary user is
/// taken to know who is in his file's group.
///
/// # Errors
/// It cannot be opened, is no file, or others may write to it.
pub(crate) fn open_program(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
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
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
        for path in ["/dev/stdout", "/dev/stderr", "/dev/fd/2", "/dev/fd/17"] {
            assert!(names_own_descriptor(Path::new(path)), "{path}");
        }
        for path in
            ["/dev/shm/log", "/dev/../home/x", "/dev/fd/", "/dev/fd/1/x", "/dev/fd/../shm/x", "stdout"]
        {
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
        assert!(open_program(&program).is_ok());
        mode(0o757);
        let error = open_program(&program).unwrap_err().to_string();
        assert!(error.contains("mode 757"), "{error}");
        mode(0o755);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&program, Some(12345), None).unwrap();
            let error = open_program(&program).unwrap_err().to_string();
            assert!(error.contains("owner 12345"), "{error}");
            std::os::unix::fs::chown(&program, Some(0), Some(12345)).unwrap();
            mode(0o775);
            let error = open_program(&program).unwrap_err().to_string();
            assert!(error.contains("group 12345, mode 775"), "{error}");
        }
        assert!(open_program(folder.path()).unwrap_err().to_string().contains("no file"));
    }
}
