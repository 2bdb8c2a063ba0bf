//! Sandboxes for every process of a VM: which layers there are ([`Layer`]), how each process enters its own
//! ([`spawner`], [`worker`], [`supervisor`], [`loader`]), what the host offers ([`probe`]) and what a running process
//! is really confined by ([`inspect`]).
//!
//! Nothing here decides *whether* a layer is wanted: callers hand a [`LayerSet`], and a layer in it that cannot be had
//! is an error that names it.

pub mod capabilities;
pub mod cgroup;
pub mod cores;
pub mod inspect;
mod layers;
mod limits;
pub mod loader;
pub mod probe;
pub mod process;
pub mod programs;
pub mod spawner;
pub mod speculation;
mod step;
pub mod supervisor;
pub mod sys;
pub mod uids;
pub mod worker;

pub use cellblock_policy::Refusal;
pub use layers::{Layer, LayerConflict, LayerSet, UnknownLayer};
pub use limits::Limits;
pub use step::{JailError, Step};
