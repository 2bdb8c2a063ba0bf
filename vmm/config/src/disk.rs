//! A disk: what `--disk` and `disk = […]` say of it.

use std::path::PathBuf;

use crate::ConfigError;

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The raw image: a file or a block device.
    pub path: PathBuf,
    /// The guest may not write; several VMs may then share the image.
    pub read_only: bool,
    /// What the guest reads as its name: 1 to 20 letters, digits, `-`, `_` and `.`. No two disks have the same.
    pub id: String,
    /// Virtqueues, 1 to 16: as many requests are done at a time.
    pub queues: u16,
    /// What the host's page cache does for it.
    pub cache: CacheMode,
}

/// What the host's page cache does for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Writes go to the page cache, a flush to stable storage.
    #[default]
    Writeback,
    /// The same, past the page cache (`O_DIRECT`).
    Direct,
    /// A flush does nothing: fast, and lost or torn if the host crashes.
    Unsafe,
}

const ALLOWED: &str = "path=PATH[,readonly][,id=NAME][,queues=1 to 16][,cache=writeback|direct|unsafe]";
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
    let refused = || ConfigError::value("disk", text, ALLOWED);
    let mut words = text.split(',');
    let path = words.next().and_then(|word| word.strip_prefix("path=")).filter(|path| !path.is_empty());
    let mut disk = Disk {
        path: path.map(PathBuf::from).ok_or_else(refused)?,
        read_only: false,
        id: format!("disk{number}"),
        queues: 1,
        cache: CacheMode::default(),
    };
    for word in words {
        match word.split_once('=') {
            None if word == "readonly" => disk.read_only = true,
            Some(("id", id)) => disk.id = checked_id(id)?,
            Some(("queues", queues)) => {
                let queues = queues.parse().ok().filter(|queues| (1..=16).contains(queues));
                disk.queues = queues.ok_or_else(refused)?;
            }
            Some(("cache", "writeback")) => disk.cache = CacheMode::Writeback,
            Some(("cache", "direct")) => disk.cache = CacheMode::Direct,
            Some(("cache", "unsafe")) => disk.cache = CacheMode::Unsafe,
            _ => return Err(refused()),
        }
    }
    Ok(disk)
}

fn checked_id(id: &str) -> Result<String, ConfigError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=20).contains(&id.len()) && id.bytes().all(allowed) {
        Ok(id.to_owned())
    } else {
        Err(ConfigError::value("disk id", id, ID_ALLOWED))
    }
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
            Disk { path: "/a.img".into(), read_only: false, id: "disk0".into(), queues: 1, cache }
        );
    }

    #[test]
    fn everything_can_be_said() {
        let disk = one("path=/a,readonly,id=root.1,queues=4,cache=direct").unwrap();
        assert!(disk.read_only);
        assert_eq!((disk.id.as_str(), disk.queues, disk.cache), ("root.1", 4, CacheMode::Direct));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "/a",
            "path=",
            "readonly,path=/a",
            "path=/a,readonly=1",
            "path=/a,queues=0",
            "path=/a,queues=17",
            "path=/a,cache=none",
            "path=/a,id=",
            "path=/a,id=123456789012345678901",
            "path=/a,id=a b",
            "path=/a,size=3",
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
