//! The mock is held to what KVM is held to, or tests against it would prove nothing.

use cellblock_conformance::platforms::MockPlatform;

cellblock_conformance::suite!(Ok(MockPlatform));
