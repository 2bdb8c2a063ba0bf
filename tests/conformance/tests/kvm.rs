//! The host's KVM.

use cellblock_conformance::platforms::KvmPlatform;

cellblock_conformance::suite!(KvmPlatform::open());
