//! A Unix socket at a path that the user names, at which the front listens.
//!
//! The folder is walked once, and kept: what is in the way is looked at, asked and removed in it, and in the end the socket. Only `bind`
//! takes the name, which is what other programs (`ss`, `lsof`) show of a socket; what it has made must then be in that folder.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::umask;

use super::paths::{FOLDER, open, open_below};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner only.
    Owner,
    /// Whom the user's file creation mask lets.
    Umask,
}

/// A socket that listens, non-blocking; its name is removed on drop.
pub(crate) struct NamedSocket {
    socket: OwnedFd,
    folder: OwnedFd,
    name: OsString,
    /// Device and inode, so that nobody else's socket is removed in the end.
    inode: (u64, u64),
}

impl NamedSocket {
    /// Listens at `path`. A socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// What follows the path in a sentence.
    pub(crate) fn listen(path: &Path, access: Access) -> Result<Self, String> {
        let name = path.file_name().ok_or("names no socket")?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = OwnedFd::from(open(folder.unwrap_or(Path::new(".")), FOLDER).map_err(failed)?);
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let socket = stream_socket().map_err(failed)?;
        match bind_with(&socket, &address, access) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(&folder, name)?;
                bind_with(&socket, &address, access).map_err(failed)?;
            }
            bound => bound.map_err(failed)?,
        }
        let inode = inode(&folder, name).ok_or("is in another folder now: somebody changes its path")?;
        listen(&socket, BACKLOG).map_err(failed)?;
        Ok(NamedSocket { socket, folder, name: name.to_owned(), inode })
    }

    /// Connects to the socket whose name is this one's with `suffix`.
    ///
    /// # Errors
    /// There is none, nobody listens there, or it is not to be followed.
    pub(crate) fn connect_beside(&self, suffix: &str) -> io::Result<OwnedFd> {
        let mut name = self.name.clone();
        name.push(suffix);
        let there = open_below(self.folder.as_fd(), Path::new(&name), OFlags::PATH)?;
        Ok(connect_to(there.as_fd())?)
    }

    /// As after a kill: the socket is closed, its name stays.
    #[cfg(test)]
    pub(crate) fn die(mut self) {
        self.inode = (0, 0);
    }
}

impl AsFd for NamedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NamedSocket {
    fn drop(&mut self) {
        if inode(&self.folder, &self.name) == Some(self.inode) {
            let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
    }
}

/// Device and inode of the socket called `name`; `None`: there is none.
fn inode(folder: &OwnedFd, name: &OsStr) -> Option<(u64, u64)> {
    let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
    is_socket.then_some((found.st_dev, found.st_ino))
}

/// For its owner only from its first moment on: a mode that is set by the path later may be set on what somebody has put there.
fn bind_with(socket: &OwnedFd, address: &SocketAddrUnix, access: Access) -> Result<(), Errno> {
    if access == Access::Umask {
        return bind(socket, address);
    }
    // This process has one thread yet, so the mask is nobody else's.
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = bind(socket, address);
    umask(before);
    bound
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Connects to a socket that is open by its path alone.
fn connect_to(there: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", there.as_raw_fd()))?;
    let socket = stream_socket()?;
    connect(&socket, &address).map(|()| socket)
}

/// Removes a socket that nobody listens at; what is alive, or no socket, is said.
fn remove_stale(folder: &OwnedFd, name: &OsStr) -> Result<(), String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let there = open_below(folder.as_fd(), Path::new(name), flags).map_err(failed)?;
    if FileType::from_raw_mode(fstat(&there).map_err(failed)?.st_mode) != FileType::Socket {
        return Err("exists and is no socket; choose another path".into());
    }
    match connect_to(there.as_fd()) {
        Err(Errno::CONNREFUSED) => unlinkat(folder, name, AtFlags::empty())
            .map_err(|error| format!("is a stale socket that cannot be removed: {error}")),
        _ => Err("is in use by another VM or program; choose another path".into()),
    }
}

fn failed(error: impl Display) -> String {
    format!("cannot be listened at: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, lchown, symlink};
    use std::os::unix::net::UnixListener;

    fn said(path: &Path) -> String {
        NamedSocket::listen(path, Access::Owner).err().unwrap()
    }

    #[test]
    fn what_is_in_use_is_refused_and_what_is_stale_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = NamedSocket::listen(&path, Access::Owner).unwrap();
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert!(said(&path).contains("in use"));
        first.die();
        assert!(path.exists());
        let second = NamedSocket::listen(&path, Access::Owner).unwrap();
        fs::remove_file(&path).unwrap();
        let others = UnixListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists(), "it is another's now");
        drop(others);
        drop(NamedSocket::listen(&path, Access::Umask).unwrap());
        assert!(!path.exists());
        for name in ["file", "link"] {
            symlink("/nowhere", folder.path().join("link")).unwrap_or_default();
            fs::write(folder.path().join("file"), "x").unwrap();
            assert!(said(&folder.path().join(name)).contains("no socket"), "{name}");
            assert!(fs::symlink_metadata(folder.path().join(name)).is_ok());
        }
        assert!(said(Path::new("/")).contains("names no socket"));
    }

    #[test]
    fn in_the_end_the_name_is_removed_where_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("ours")).unwrap();
        fs::create_dir(at("theirs")).unwrap();
        let socket = NamedSocket::listen(&at("ours/socket"), Access::Umask).unwrap();
        fs::write(at("theirs/socket"), "kept").unwrap();
        fs::rename(at("ours"), at("moved")).unwrap();
        symlink("theirs", at("ours")).unwrap();
        drop(socket);
        assert_eq!(fs::read(at("ours/socket")).unwrap(), b"kept");
        assert!(!at("moved/socket").exists());
    }

    #[test]
    fn root_listens_and_connects_along_nobodys_links() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let link = |to: &str, name: &str, owner| {
            symlink(to, at(name)).unwrap();
            lchown(at(name), Some(owner), None).unwrap();
        };
        fs::create_dir(at("real")).unwrap();
        link("real", "root", 0);
        link("real", "stranger", 12345);
        assert!(said(&at("stranger/socket")).contains("link of uid 12345"));
        assert!(!at("real/socket").exists());
        let socket = NamedSocket::listen(&at("root/socket"), Access::Owner).unwrap();
        let _secret = UnixListener::bind(at("secret")).unwrap();
        link("../secret", "real/socket_1", 0);
        link("../secret", "real/socket_2", 12345);
        assert!(socket.connect_beside("_1").is_ok());
        let error = socket.connect_beside("_2").unwrap_err().to_string();
        assert!(error.contains("socket_2 in its path is a symbolic link of uid 12345"), "{error}");
        assert_eq!(socket.connect_beside("_3").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
