//! Opening what the user names where others may have been first.
//!
//! Each path is walked once, and from then on there is its descriptor; what is looked at is the open file. As root, whoever can write to the
//! folder could otherwise have the VM write to, or run, what is not his.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// The file at `path` for appending, made if there is none. For root the last name of the path may be no link, of either kind, but
/// in `/dev`, where only root makes any.
///
/// # Errors
/// It cannot be opened, or is a link's target.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    open_log_as(path, rustix::process::geteuid().is_root() && !path.starts_with("/dev"))
}

fn open_log_as(path: &Path, wary: bool) -> io::Result<File> {
    let flags = if wary { OFlags::NOFOLLOW } else { OFlags::empty() };
    let opened = OpenOptions::new().append(true).create(true).custom_flags(flags.bits() as i32).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(code) if wary && code == rustix::io::Errno::LOOP.raw_os_error() => {
            io::Error::other("it is a symbolic link, which root does not follow; name the file itself")
        }
        _ => error,
    })?;
    let links = file.metadata()?.nlink();
    if wary && links > 1 {
        return Err(io::Error::other(format!(
            "it has {links} names, of which one may be somebody else's; root writes to files with one"
        )));
    }
    Ok(file)
}

/// The file at `path`, of which a VM's process is made: only root and this user may be able to change it.
///
/// # Errors
/// It cannot be opened, is no file, or others may write to it.
pub(crate) fn open_program(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if ![0, own].contains(&found.uid()) || found.mode() & 0o002 != 0 {
        return Err(io::Error::other(format!(
            "others than root and this user can change it (owner {}, mode {:o})",
            found.uid(),
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
        let (secret, link, hard) =
            (folder.path().join("secret"), folder.path().join("link"), folder.path().join("hard"));
        fs::write(&secret, "kept").unwrap();
        symlink(&secret, &link).unwrap();
        assert!(open_log_as(&link, true).unwrap_err().to_string().contains("symbolic link"));
        assert!(open_log_as(&link, false).is_ok(), "an ordinary user's rights are his own");
        assert!(open_log_as(&secret, true).is_ok());
        fs::hard_link(&secret, &hard).unwrap();
        assert!(open_log_as(&hard, true).unwrap_err().to_string().contains("2 names"));
        // A link to nothing makes nothing.
        let (nothing, dangling) = (folder.path().join("nothing"), folder.path().join("dangling"));
        symlink(&nothing, &dangling).unwrap();
        assert!(open_log_as(&dangling, true).is_err() && !nothing.exists());
        assert_eq!(fs::read(&secret).unwrap(), b"kept");
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
        }
        assert!(open_program(folder.path()).unwrap_err().to_string().contains("no file"));
    }
}
