//! What a network device may lead to here, for tests that need one whatever it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// What there is.
#[derive(Debug)]
pub(crate) enum Network {
    /// passt, and a default route for it to take after.
    Passt,
    /// Taps, which the program makes: those that were.
    Taps {
        /// `cellblock`.
        program: PathBuf,
        /// To be deleted in the end.
        made: Mutex<Vec<String>>,
    },
    /// Neither.
    None,
}

static TAPS: AtomicU32 = AtomicU32::new(0);

impl Network {
    /// Looks for it; `program` is cellblock.
    pub(crate) fn find(program: &Path) -> Self {
        let passt = Command::new("passt").arg("--version").output();
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let default_route = routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000"));
        if passt.is_ok_and(|output| output.status.success()) && default_route {
            Network::Passt
        } else if rustix::process::geteuid().is_root() && Path::new("/dev/net/tun").exists() {
            Network::Taps { program: program.to_owned(), made: Mutex::default() }
        } else {
            Network::None
        }
    }

    /// What `--net` is told for one more device, which the user `owner` may have, too.
    pub(crate) fn option(&self, owner: u32) -> Option<String> {
        match self {
            Network::Passt => Some("passt".to_owned()),
            Network::Taps { program, made } => {
                let name = format!("e2e{}x{}", std::process::id(), TAPS.fetch_add(1, Ordering::Relaxed));
                let owner = owner.to_string();
                let made_it = Command::new(program).args(["tap", "create", &name, "--user", &owner]).status();
                made_it.is_ok_and(|status| status.success()).then(|| {
                    made.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
                    format!("tap={name}")
                })
            }
            Network::None => None,
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let Network::Taps { program, made } = self else { return };
        for name in made.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = Command::new(&*program).args(["tap", "delete", name]).status();
        }
    }
}
