//! Ranges of uids. A program of its own with one test, because a lock stays held while any process that was forked meanwhile has not
//! executed its program yet, and other tests fork.
#![allow(clippy::unwrap_used)] // Tests; clippy knows only #[test] functions as such.

use cellblock_jail::uids::{BASE, COUNT, UidError, UidRange};

#[test]
fn ranges_are_exclusive_and_freed_with_their_last_holder() {
    let directory = tempfile::tempdir().unwrap();
    let take = || UidRange::take_in(&directory.path().join("uids"), BASE, 2);
    let first = take().unwrap();
    let second = take().unwrap();
    assert_eq!((first.base, second.base), (BASE, BASE + COUNT));
    assert!(matches!(take(), Err(UidError::Exhausted(2))));
    // A forked process holds the same open file; so does a duplicate.
    let held_by_child = first.lock.try_clone().unwrap();
    drop(first);
    assert!(take().is_err());
    drop(held_by_child);
    assert_eq!(take().unwrap().base, BASE);
}

#[test]
fn a_directory_that_others_can_change_is_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = UidRange::take_in(&shared, BASE, 2).unwrap_err().to_string();
    assert!(error.contains("mode 777"), "{error}");
    let link = directory.path().join("link");
    symlink(directory.path(), &link).unwrap();
    assert!(UidRange::take_in(&link, BASE, 2).is_err());
}
