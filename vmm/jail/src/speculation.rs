//! What a process may say of the processor's speculation on its behalf (Linux `Documentation/userspace-api/spec_ctrl.rst`): that no load
//! overtakes a store whose address is not known, and that no branch goes where another process' branches have gone.
//!
//! What is said holds for the thread that says it, for those that it makes and forks, and for what these execute; for good.

use crate::step::During;
use crate::{JailError, Layer, LayerSet, Step, sys};

/// One kind of speculation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// Past stores.
    StoreBypass,
    /// Along indirect branches.
    IndirectBranch,
}

/// Who decides about it on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// This processor does not do it.
    NotAffected,
    /// Each process.
    Own {
        /// It is held back in this process, for good.
        held: bool,
    },
    /// The host's administrator, who lets everybody do it (`true`) or nobody.
    Host(bool),
    /// This kernel does not know of it.
    Unknown,
}

impl Speculation {
    /// Both.
    pub const ALL: [Speculation; 2] = [Speculation::StoreBypass, Speculation::IndirectBranch];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Speculation::StoreBypass => "store bypass",
            Speculation::IndirectBranch => "indirect branch",
        }
    }

    /// The kernel's key for it in `/proc/pid/status`.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Speculation::StoreBypass => "Speculation_Store_Bypass",
            Speculation::IndirectBranch => "SpeculationIndirectBranch",
        }
    }

    const fn number(self) -> u64 {
        match self {
            Speculation::StoreBypass => 0,
            Speculation::IndirectBranch => 1,
        }
    }

    /// Who decides about it here.
    ///
    /// # Errors
    /// The kernel's, if it is another than that it does not know, or that a container's filter forbids to ask.
    pub fn control(self) -> std::io::Result<Control> {
        match sys::speculation(self.number()) {
            Ok(state) => Ok(Control::of(state)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::EPERM)) => {
                Ok(Control::Unknown)
            }
            Err(error) => Err(error),
        }
    }
}

impl Control {
    /// What `PR_GET_SPECULATION_CTRL` returns (`include/uapi/linux/prctl.h`).
    fn of(state: u64) -> Control {
        const PRCTL: u64 = 1;
        const ENABLE: u64 = 2;
        const FORCE_DISABLE: u64 = 8;
        match state {
            0 => Control::NotAffected,
            _ if state & PRCTL != 0 => Control::Own { held: state & FORCE_DISABLE != 0 },
            _ => Control::Host(state & ENABLE != 0),
        }
    }
}

impl std::fmt::Display for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Control::NotAffected => "not done by this processor",
            Control::Own { held: true } => "held back",
            Control::Own { held: false } => "can be held back",
            Control::Host(true) => "everybody's, and no process can change that",
            Control::Host(false) => "held back for everybody",
            Control::Unknown => "not offered by this kernel, or kept from this process",
        })
    }
}

/// Holds both back, in this process and in all that it starts, as far as the kernel lets a process decide.
///
/// # Errors
/// [`Step::Speculation`]: it lets, and then refuses.
pub(crate) fn hold_back(layers: LayerSet) -> Result<(), JailError> {
    if !layers.has(Layer::Speculation) {
        return Ok(());
    }
    Speculation::ALL.into_iter().try_for_each(|kind| {
        let Err(error) = sys::hold_speculation(kind.number()) else { return Ok(()) };
        match kind.control() {
            Ok(Control::NotAffected | Control::Host(_) | Control::Unknown) => Ok(()),
            Ok(Control::Own { .. }) | Err(_) => Err(error).during(Step::Speculation),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answers_are_understood() {
        for (state, control) in [
            (0, Control::NotAffected),
            (1 | 2, Control::Own { held: false }),
            (1 | 4, Control::Own { held: false }),
            (1 | 8, Control::Own { held: true }),
            (2, Control::Host(true)),
            (4, Control::Host(false)),
        ] {
            assert_eq!(Control::of(state), control, "{state}");
        }
    }
}
