//! CPUID of a vCPU: what the host's KVM supports, made true for this VM (Intel SDM vol 2 "CPUID", AMD APM vol 3 appendix E).
//!
//! - The VM is one socket of N cores with one thread each; APIC id = vCPU number.
//! - The hypervisor bit and KVM's signature leaf are always there, the TSC-deadline timer where the host has it: without PIT
//!   and PM timer, Linux takes its clock from kvm-clock and its timer from the local APIC.
//! - Hidden, as a stranger's guest has no use for them that would be worth the attack surface: nested virtualization (VMX, SVM), the performance
//!   counters, SGX, MONITOR/MWAIT.

use cellblock_hypervisor::x86_64::CpuidLeaf;

const VENDOR: u32 = 0;
const FEATURES: u32 = 1;
const INTEL_CACHES: u32 = 4;
const STRUCTURED_FEATURES: u32 = 7;
const PERFORMANCE_COUNTERS: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const SGX: u32 = 0x12;
const TOPOLOGY_V2: u32 = 0x1f;
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_SVM: u32 = 0x8000_000a;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_PERFORMANCE: u32 = 0x8000_0022;
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Leaf 1 ECX.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1 EDX: EBX[23:16] is valid.
const HTT: u32 = 1 << 28;
/// Leaf 7 EBX and ECX.
const SGX_PRESENT: u32 = 1 << 2;
const SGX_LAUNCH_CONTROL: u32 = 1 << 30;
/// Leaf 0x8000_0001 ECX.
const SVM: u32 = 1 << 2;
const AMD_CORE_COUNTERS: u32 = 1 << 23;
const AMD_CMP_LEGACY: u32 = 1 << 1;

/// The leaves for vCPU `id` of `cpus` (1 to 32), from those that the hypervisor supports.
///
/// `supported` comes from the host's kernel and is trusted to be CPUID leaves; nothing is assumed about which there are.
#[must_use]
pub fn for_vcpu(supported: &[CpuidLeaf], id: u32, cpus: u32) -> Vec<CpuidLeaf> {
    let vcpu = Vcpu { id, cpus: cpus.max(1), amd: is_amd(supported) };
    let mut leaves: Vec<CpuidLeaf> = supported
        .iter()
        .filter(|leaf| !matches!(leaf.function, TOPOLOGY | TOPOLOGY_V2))
        .map(|leaf| vcpu.adapt(*leaf))
        .collect();
    let last = supported.iter().find(|leaf| leaf.function == VENDOR).map_or(0, |leaf| leaf.eax);
    for function in [TOPOLOGY, TOPOLOGY_V2] {
        if function <= last {
            leaves.extend(vcpu.topology(function));
        }
    }
    add_hypervisor_leaf(&mut leaves);
    leaves
}

fn is_amd(supported: &[CpuidLeaf]) -> bool {
    let letters = |text: &[u8; 4]| u32::from_le_bytes(*text);
    supported
        .iter()
        .any(|leaf| leaf.function == VENDOR && (leaf.ebx == letters(b"Auth") || leaf.ebx == letters(b"Hygo")))
}

/// KVM's signature, where the host's list lacks it.
fn add_hypervisor_leaf(leaves: &mut Vec<CpuidLeaf>) {
    if leaves.iter().any(|leaf| leaf.function == HYPERVISOR) {
        return;
    }
    leaves.push(CpuidLeaf {
        function: HYPERVISOR,
        eax: HYPERVISOR_FEATURES,
        ebx: u32::from_le_bytes(*b"KVMK"),
        ecx: u32::from_le_bytes(*b"VMKV"),
        edx: u32::from_le_bytes(*b"M\0\0\0"),
        ..CpuidLeaf::default()
    });
}

/// One vCPU's place in the VM.
struct Vcpu {
    id: u32,
    cpus: u32,
    amd: bool,
}

impl Vcpu {
    /// Bits of the APIC id that number cores.
    fn core_bits(&self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }

    fn adapt(&self, mut leaf: CpuidLeaf) -> CpuidLeaf {
        match leaf.function {
            FEATURES => self.features(&mut leaf),
            INTEL_CACHES | AMD_CACHES => self.caches(&mut leaf),
            STRUCTURED_FEATURES if leaf.index == 0 => {
                leaf.ebx &= !SGX_PRESENT;
                leaf.ecx &= !SGX_LAUNCH_CONTROL;
            }
            EXTENDED_FEATURES => self.extended_features(&mut leaf),
            AMD_SIZES if self.amd => {
                // NC: cores minus one; ApicIdSize; keep PerfTscSize away with the counters.
                leaf.ecx = (self.cpus - 1) | self.core_bits() << 12;
            }
            AMD_TOPOLOGY => {
                (leaf.eax, leaf.ebx, leaf.ecx) = (self.id, self.id, 0);
            }
            PERFORMANCE_COUNTERS | SGX | AMD_SVM | AMD_PERFORMANCE | AMD_TOPOLOGY_V2 => {
                (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
        leaf
    }

    fn features(&self, leaf: &mut CpuidLeaf) {
        let ids = 1u32 << self.core_bits();
        leaf.ebx = leaf.ebx & 0xffff | ids << 16 | self.id << 24;
        leaf.ecx &= !(MONITOR | VMX | PDCM);
        leaf.ecx |= HYPERVISOR_PRESENT | X2APIC;
        if self.cpus > 1 { leaf.edx |= HTT } else { leaf.edx &= !HTT }
    }

    fn extended_features(&self, leaf: &mut CpuidLeaf) {
        leaf.ecx &= !(SVM | AMD_CORE_COUNTERS);
        if self.amd && self.cpus > 1 { leaf.ecx |= AMD_CMP_LEGACY } else { leaf.ecx &= !AMD_CMP_LEGACY }
    }

    /// Leaf 4 and its AMD twin: level 3 is shared by all cores, the levels below are each core's own.
    fn caches(&self, leaf: &mut CpuidLeaf) {
        const KIND: u32 = 0x1f;
        const SHARED_BY: u32 = 0xfff << 14;
        const CORES: u32 = 0x3f << 26;
        if leaf.eax & KIND == 0 {
            return;
        }
        let ids = (1u32 << self.core_bits()) - 1;
        let level = leaf.eax >> 5 & 7;
        let shared_by = if level >= 3 { ids } else { 0 };
        leaf.eax = leaf.eax & !SHARED_BY | shared_by << 14;
        if leaf.function == INTEL_CACHES {
            leaf.eax = leaf.eax & !CORES | ids << 26;
        }
    }

    /// Leaves 0xb and 0x1f: threads, cores, end.
    fn topology(&self, function: u32) -> [CpuidLeaf; 3] {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        let level = |index: u32, shift: u32, count: u32, kind: u32| CpuidLeaf {
            function,
            index,
            indexed: true,
            eax: shift,
            ebx: count,
            ecx: kind | index,
            edx: self.id,
        };
        [level(0, 0, 1, THREADS), level(1, self.core_bits(), self.cpus, CORES), level(2, 0, 0, 0)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaf(function: u32, index: u32, eax: u32, ebx: u32) -> CpuidLeaf {
        CpuidLeaf { function, index, indexed: index > 0, eax, ebx, ecx: u32::MAX, edx: u32::MAX }
    }

    fn host(vendor: &[u8; 4]) -> Vec<CpuidLeaf> {
        let cache = |level: u32| level << 5 | 1 | 0xfff << 14 | 0x3f << 26;
        vec![
            leaf(VENDOR, 0, 0x1f, u32::from_le_bytes(*vendor)),
            leaf(FEATURES, 0, 0, u32::MAX),
            leaf(INTEL_CACHES, 0, cache(1), 0),
            leaf(INTEL_CACHES, 3, cache(3), 0),
            leaf(STRUCTURED_FEATURES, 0, 0, u32::MAX),
            leaf(PERFORMANCE_COUNTERS, 0, 7, 7),
            leaf(TOPOLOGY, 0, 99, 99),
            leaf(0x8000_0000, 0, 0x8000_0026, 0),
            leaf(EXTENDED_FEATURES, 0, 0, 0),
            leaf(AMD_SIZES, 0, 0, 0),
            leaf(AMD_CACHES, 3, cache(3), 0),
            leaf(AMD_TOPOLOGY, 0, 99, 99),
        ]
    }

    const TSC_DEADLINE: u32 = 1 << 24;

    fn get(leaves: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
        let found: Vec<_> = leaves.iter().filter(|l| (l.function, l.index) == (function, index)).collect();
        assert_eq!(found.len(), 1, "leaf {function:#x} index {index}");
        *found[0]
    }

    #[test]
    fn the_timers_that_linux_needs_without_pit_are_announced() {
        let mut lacking = host(b"Genu");
        lacking[1].ecx &= !TSC_DEADLINE;
        assert_eq!(get(&for_vcpu(&lacking, 0, 1), FEATURES, 0).ecx & TSC_DEADLINE, 0, "what the host lacks");
        let features = get(&for_vcpu(&host(b"Genu"), 0, 1), FEATURES, 0);
        assert_eq!(features.ecx & (TSC_DEADLINE | HYPERVISOR_PRESENT), TSC_DEADLINE | HYPERVISOR_PRESENT);
        assert_eq!(features.ecx & (VMX | MONITOR), 0);
        let signature = get(&for_vcpu(&host(b"Genu"), 0, 1), HYPERVISOR, 0);
        assert_eq!((signature.eax, signature.ebx), (HYPERVISOR_FEATURES, 0x4b4d_564b));
    }

    /// What Linux computes (`arch/x86/kernel/cpu/topology.c`): package = APIC id >> core bits, and so on.
    #[test]
    fn cpus_are_cores_of_one_socket() {
        for cpus in 1..=32 {
            for id in 0..cpus {
                let leaves = for_vcpu(&host(b"Genu"), id, cpus);
                for function in [TOPOLOGY, TOPOLOGY_V2] {
                    let (threads, cores) = (get(&leaves, function, 0), get(&leaves, function, 1));
                    assert_eq!((threads.eax, threads.ebx, threads.edx), (0, 1, id));
                    assert_eq!((cores.ebx, cores.edx, id >> cores.eax), (cpus, id, 0));
                    assert_eq!((threads.ecx, cores.ecx), (0x100, 0x201));
                    assert_eq!(get(&leaves, function, 2).ebx, 0);
                }
                let features = get(&leaves, FEATURES, 0);
                assert_eq!(features.ebx >> 24, id);
                assert_eq!(features.edx & HTT != 0, cpus > 1);
                let (first, third) = (get(&leaves, INTEL_CACHES, 0), get(&leaves, INTEL_CACHES, 3));
                assert_eq!(first.eax >> 14 & 0xfff, 0);
                assert_eq!((third.eax >> 14 & 0xfff) + 1, cpus.next_power_of_two());
                assert_eq!(third.eax >> 26, first.eax >> 26);
            }
        }
    }

    #[test]
    fn amd_leaves_say_the_same() {
        let leaves = for_vcpu(&host(b"Auth"), 5, 6);
        assert_eq!(get(&leaves, AMD_SIZES, 0).ecx, 5 | 3 << 12);
        let topology = get(&leaves, AMD_TOPOLOGY, 0);
        assert_eq!((topology.eax, topology.ebx, topology.ecx), (5, 5, 0));
        assert_eq!(get(&leaves, EXTENDED_FEATURES, 0).ecx & (SVM | AMD_CORE_COUNTERS), 0);
        assert_eq!(get(&leaves, AMD_CACHES, 3).eax >> 14 & 0xfff, 7);
        assert_eq!(get(&leaves, AMD_CACHES, 3).eax >> 26, 0x3f, "reserved there, left alone");
    }

    #[test]
    fn a_host_without_the_topology_leaf_gets_none() {
        let leaves = for_vcpu(&[leaf(VENDOR, 0, 7, 0)], 0, 2);
        assert!(leaves.iter().all(|leaf| leaf.function != TOPOLOGY));
    }

    proptest! {
        #[test]
        fn any_list_of_leaves_is_survived(
            raw in prop::collection::vec((prop::sample::select(vec![0u32, 1, 4, 7, 0xa, 0xb, 0x1f, 0x4000_0000, 0x8000_0001,
                0x8000_0008, 0x8000_001d, 0x8000_001e]), any::<u32>(), any::<u32>(), any::<u32>()), 0..40),
            id in any::<u32>(), cpus in 0u32..=32,
        ) {
            let supported: Vec<_> = raw.iter().map(|(f, i, a, b)| leaf(*f, *i, *a, *b)).collect();
            let leaves = for_vcpu(&supported, id, cpus);
            prop_assert!(leaves.iter().any(|leaf| leaf.function == HYPERVISOR));
            prop_assert!(leaves.len() <= supported.len() + 7);
        }
    }
}
