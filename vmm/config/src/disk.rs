//! A disk: what `--disk` and `disk = […]` say of it.

use std::path::PathBuf;

use cellblock_wire::device::{CacheMode, Format, Limits, MAX_BACKING};

use crate::ConfigError;
use crate::options::{Options, is_name};

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image: a file or, if it is raw, a block device.
    pub path: PathBuf,
    /// The guest may not write; several VMs may then share the image.
    pub read_only: bool,
    /// What the guest reads as its name: 1 to 20 letters, digits, `-`, `_` and `.`. No two disks have the same.
    pub id: String,
    /// Virtqueues, 1 to 16: as many requests are done at a time.
    pub queues: u16,
    /// What the host's page cache does for it.
    pub cache: CacheMode,
    /// How the image holds the disk's bytes.
    pub format: Format,
    /// The files that a qcow2 image is based on, from the image down: at most 8. Names in the image are never followed.
    pub backing: Vec<PathBuf>,
    /// Of all queues together.
    pub limits: Limits,
}

const ALLOWED: &str = "path=PATH[,readonly][,id=NAME][,queues=1 to 16][,cache=writeback|direct|unsafe][,format=raw|qcow2]\
                       [,backing=PATH, up to 8 times, with qcow2][,rate=BYTES[+BURST]][,ops=N[+BURST]]";
const ID_ALLOWED: &str = "1 to 20 letters, digits, '-', '_' and '.', another for each disk";

/// The disks that `texts` describe. One without a name is `disk` and its number, from 0.
pub(crate) fn disks(texts: Vec<String>) -> Result<Vec<Disk>, ConfigError> {
    let disks: Vec<Disk> =
        texts.iter().enumerate().map(|(number, text)| disk(text, number)).collect::<Result<_, _>>()?;
    for (number, disk) in disks.iter().enumerate() {
        if disks.iter().take(number).any(|other| other.id == disk.id) {
            return Err(ConfigError::value("disk id", &disk.id, ID_ALLOWED));
        }
    }
    Ok(disks)
}

fn disk(text: &str, number: usize) -> Result<Disk, ConfigError> {
    let mut options = Options::new("disk", text, ALLOWED);
    let caches =
        [("writeback", CacheMode::Writeback), ("direct", CacheMode::Direct), ("unsafe", CacheMode::Unsafe)];
    let id = options.text("id")?.unwrap_or_else(|| format!("disk{number}"));
    let disk = Disk {
        path: options.path("path")?,
        read_only: options.flag("readonly"),
        queues: options.number("queues", |queues| (1..=16).contains(queues))?.unwrap_or(1),
        cache: options.choice("cache", &caches)?.unwrap_or_default(),
        format: options
            .choice("format", &[("raw", Format::Raw), ("qcow2", Format::Qcow2)])?
            .unwrap_or_default(),
        backing: backing(&mut options)?,
        limits: options.limits()?,
        id,
    };
    if !disk.backing.is_empty() && disk.format == Format::Raw {
        return Err(options.refused());
    }
    options.end()?;
    if is_name(&disk.id, 20) { Ok(disk) } else { Err(ConfigError::value("disk id", &disk.id, ID_ALLOWED)) }
}

fn backing(options: &mut Options) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = Vec::new();
    while files.len() < MAX_BACKING.into() {
        let Some(path) = options.text("backing")? else { break };
        files.push(path.into());
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Disk, ConfigError> {
        disks(vec![text.to_owned()]).map(|mut disks| disks.remove(0))
    }

    #[test]
    fn a_path_is_enough() {
        let disk = one("path=/a.img").unwrap();
        let cache = CacheMode::Writeback;
        assert_eq!(
            disk,
            Disk {
                path: "/a.img".into(),
                read_only: false,
                id: "disk0".into(),
                queues: 1,
                cache,
                format: Format::Raw,
                backing: vec![],
                limits: Limits::default()
            }
        );
    }

    #[test]
    fn everything_can_be_said() {
        let disk = one("path=/a,readonly,id=root.1,queues=4,cache=direct").unwrap();
        assert!(disk.read_only);
        assert_eq!((disk.id.as_str(), disk.queues, disk.cache), ("root.1", 4, CacheMode::Direct));
    }

    #[test]
    fn backing_files_are_named_in_their_order() {
        let disk = one("path=/a,format=qcow2,backing=/b,,c,rate=1K,backing=/d").unwrap();
        assert_eq!(disk.format, Format::Qcow2);
        assert_eq!(disk.backing, [PathBuf::from("/b,c"), PathBuf::from("/d")]);
        let many = |count| one(&format!("path=/a,format=qcow2{}", ",backing=/b".repeat(count)));
        assert_eq!(many(8).unwrap().backing.len(), 8);
        assert!(many(9).is_err() && one("path=/a,backing=/b").is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "/a",
            "path=",
            "path=/a,readonly=1",
            "path=/a,queues=0",
            "path=/a,queues=17",
            "path=/a,cache=none",
            "path=/a,id=",
            "path=/a,id=123456789012345678901",
            "path=/a,id=a b",
            "path=/a,size=3",
            "path=/a,format=vmdk",
            "path=/a,format=qcow2,backing=",
        ] {
            assert!(one(text).is_err(), "{text}");
        }
    }

    #[test]
    fn two_disks_have_two_names() {
        let named = disks(vec!["path=/a".into(), "path=/b".into()]).unwrap();
        assert_eq!((named[0].id.as_str(), named[1].id.as_str()), ("disk0", "disk1"));
        assert!(disks(vec!["path=/a,id=disk1".into(), "path=/b".into()]).is_err());
    }
}
