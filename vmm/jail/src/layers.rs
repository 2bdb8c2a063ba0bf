//! The layers of the sandbox, by name, and which of them an asker may have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One layer of the sandbox. The order is that of `doctor` and `ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Layer {
    /// A user namespace for the VM, and one for each worker.
    User,
    /// A pid namespace for the VM, and one for each worker: nobody sees another, and all end with the spawner.
    Pid,
    /// A mount namespace whose root is an empty read-only tmpfs.
    Mount,
    /// An empty network namespace for the VM.
    Net,
    /// An IPC namespace for the VM.
    Ipc,
    /// A UTS namespace for the VM: no host name.
    Uts,
    /// A uid of its own for each worker (as root).
    Uid,
    /// No capabilities, in any set.
    Caps,
    /// `no_new_privs`.
    NoNewPrivs,
    /// Landlock: no path, no TCP port, no signal outwards.
    Landlock,
    /// seccomp: the device's list of system calls.
    Seccomp,
    /// Resource limits, among them the exact number of threads.
    Rlimits,
    /// A cgroup v2 with limits, where the host delegates one.
    Cgroup,
    /// No speculation past stores and along foreign branches, where the kernel lets a process say so.
    Speculation,
}

impl Layer {
    /// Every layer.
    pub const ALL: [Layer; 14] = [
        Layer::User,
        Layer::Pid,
        Layer::Mount,
        Layer::Net,
        Layer::Ipc,
        Layer::Uts,
        Layer::Uid,
        Layer::Caps,
        Layer::NoNewPrivs,
        Layer::Landlock,
        Layer::Seccomp,
        Layer::Rlimits,
        Layer::Cgroup,
        Layer::Speculation,
    ];

    /// The name for `--without-layer`.
    pub const fn name(self) -> &'static str {
        match self {
            Layer::User => "user",
            Layer::Pid => "pid",
            Layer::Mount => "mount",
            Layer::Net => "net",
            Layer::Ipc => "ipc",
            Layer::Uts => "uts",
            Layer::Uid => "uid",
            Layer::Caps => "caps",
            Layer::NoNewPrivs => "no-new-privs",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
            Layer::Rlimits => "rlimits",
            Layer::Cgroup => "cgroup",
            Layer::Speculation => "speculation",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no layer's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "there is no sandbox layer {0:?}; the layers are user, pid, mount, net, ipc, uts, uid, caps, no-new-privs, landlock, \
     seccomp, rlimits, cgroup, speculation"
)]
pub struct UnknownLayer(pub String);

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(name: &str) -> Result<Layer, UnknownLayer> {
        Layer::ALL.into_iter().find(|layer| layer.name() == name).ok_or_else(|| UnknownLayer(name.to_owned()))
    }
}

/// A set of layers.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSet(u16);

impl LayerSet {
    /// All of them: the default.
    pub const fn all() -> LayerSet {
        LayerSet((1 << Layer::ALL.len()) - 1)
    }

    /// None.
    pub const fn none() -> LayerSet {
        LayerSet(0)
    }

    /// Whether `layer` is in it.
    pub const fn has(self, layer: Layer) -> bool {
        self.0 & layer.bit() != 0
    }

    /// The set with `layer`.
    #[must_use]
    pub const fn with(self, layer: Layer) -> LayerSet {
        LayerSet(self.0 | layer.bit())
    }

    /// The set without `layer`.
    #[must_use]
    pub const fn without(self, layer: Layer) -> LayerSet {
        LayerSet(self.0 & !layer.bit())
    }

    /// Its layers, in order.
    pub fn iter(self) -> impl Iterator<Item = Layer> {
        Layer::ALL.into_iter().filter(move |layer| self.has(*layer))
    }

    /// Whether these layers can be had together by root (`privileged`) or by an ordinary user.
    ///
    /// # Errors
    /// All layers at once that must be done without, too.
    pub fn check(self, privileged: bool) -> Result<(), LayerConflict> {
        if privileged || self.has(Layer::User) {
            return Ok(());
        }
        let needing = [Layer::Pid, Layer::Mount, Layer::Net, Layer::Ipc, Layer::Uts];
        let impossible: Vec<Layer> = needing.into_iter().filter(|layer| self.has(*layer)).collect();
        if impossible.is_empty() { Ok(()) } else { Err(LayerConflict { impossible }) }
    }
}

impl fmt::Debug for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Layer::name)).finish()
    }
}

impl FromIterator<Layer> for LayerSet {
    fn from_iter<T: IntoIterator<Item = Layer>>(layers: T) -> LayerSet {
        layers.into_iter().fold(LayerSet::none(), LayerSet::with)
    }
}

/// Layers that an ordinary user cannot have without the layer `user`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerConflict {
    /// Which.
    pub impossible: Vec<Layer>,
}

impl std::error::Error for LayerConflict {}

impl fmt::Display for LayerConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.impossible.iter().map(|layer| layer.name()).collect();
        let flags: Vec<String> = names.iter().map(|name| format!("--without-layer {name}")).collect();
        write!(
            f,
            "without the layer user an ordinary user cannot have {}: run as root, keep the layer user, or add {}",
            names.join(", "),
            flags.join(" ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sets() {
        for layer in Layer::ALL {
            assert_eq!(layer.name().parse(), Ok(layer));
            assert!(LayerSet::all().has(layer) && !LayerSet::all().without(layer).has(layer));
        }
        assert!("users".parse::<Layer>().unwrap_err().to_string().contains("no-new-privs"));
        assert_eq!(Layer::ALL.into_iter().collect::<LayerSet>(), LayerSet::all());
    }

    #[test]
    fn an_ordinary_user_is_told_everything_at_once() {
        let set = LayerSet::all().without(Layer::User).without(Layer::Net);
        assert_eq!(set.check(true), Ok(()));
        let text = set.check(false).unwrap_err().to_string();
        assert!(text.contains("pid, mount, ipc, uts") && text.contains("--without-layer uts"), "{text}");
        assert_eq!(LayerSet::all().check(false), Ok(()));
    }
}
