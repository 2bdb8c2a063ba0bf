//! `cellblock ps --security`: what the kernel says of each process' sandbox, held against what the VM was started with.
//!
//! What the kernel does not tell of a process is not looked at: its Landlock rules, what its seccomp programs allow, whether its memory
//! may gain execution, its keyrings.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use cellblock_jail::cgroup::VmGroup;
use cellblock_jail::inspect::{Inspection, look};
use cellblock_jail::spawner::{Ids, KEPT};
use cellblock_jail::supervisor::{Confinement, lost};
use cellblock_jail::{Layer, LayerSet, Limits};
use cellblock_spawner::MAX_PROCESSES;
use cellblock_supervisor::DevicePlan;
use serde::{Deserialize, Serialize};

/// What the processes of a VM were started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Declaration {
    layers: LayerSet,
    /// Started by root.
    root: bool,
    /// The host's uid of the supervisor, where it has one of its own.
    supervisor: Option<u32>,
    /// The same of init and the spawner.
    spawner: Option<u32>,
    /// The name of the VM's cgroup, in which the workers have groups of their own.
    group: Option<String>,
    /// How many seccomp programs the front runs under, which all of the VM's processes inherit.
    inherited_filters: u32,
    /// The front's namespaces, by the kernel's names.
    namespaces: BTreeMap<String, String>,
    /// All of them but the front have one core-scheduling cookie, which nobody else has.
    pub(crate) core_sched: bool,
    /// In the order of the devices.
    workers: Vec<DeclaredWorker>,
    /// Of the workers whose groups limit them.
    pub(crate) disks: Vec<DeclaredDisks>,
}

/// What a worker's group lets it ask of disks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeclaredDisks {
    /// The device's number.
    pub index: usize,
    /// Its group's `io.max`.
    pub file: PathBuf,
    /// Of which these are lines.
    pub lines: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct DeclaredWorker {
    /// On the host, where it has one of its own.
    uid: Option<u32>,
    threads: u32,
    address_space: u64,
    files: u32,
    file_size: u64,
    /// The host's files that it is granted: a disk's image and what that is based on, a tap.
    granted: BTreeSet<String>,
}

/// Which process of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Front,
    Supervisor,
    Init,
    Spawner,
    /// Of device number so many.
    Worker(usize),
    /// The same, of one that does not serve yet.
    Starting(usize),
    /// It waits to take a worker's place.
    Spare,
    /// What the front has started besides, outside the sandbox.
    Helper,
}

/// What the kernel says of one process, and what of that is not as declared.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<Inspection>,
    /// False of what is in no sandbox.
    compared: bool,
    /// What may not be looked at, and so was not compared.
    unseen: Vec<String>,
    /// Empty = as declared.
    pub differences: Vec<String>,
}

impl Declaration {
    /// Of a VM with `devices`, whose workers have `limits`, and whose front is this process.
    ///
    /// # Errors
    /// This process cannot look at itself.
    pub(crate) fn new<'a>(
        how: &Confinement,
        ids: Ids,
        cgroup: Option<&VmGroup>,
        devices: &[DevicePlan],
        limits: impl IntoIterator<Item = &'a Limits>,
    ) -> Result<Declaration, String> {
        let own = std::process::id().cast_signed();
        let (front, _) = look(own).map_err(|error| format!("this process cannot look at itself: {error}"))?;
        let layers = how.layers;
        let worker = |(index, (device, limits)): (usize, (&DevicePlan, &Limits))| {
            let inside = ids.worker(layers, index);
            let outside = |id| ids.spawner(layers).map_or(id, |base| base + id);
            // Where each has its own user namespace its processes are counted apart from those of others.
            let apart = if layers.has(Layer::User) { 1 } else { MAX_PROCESSES as u32 };
            DeclaredWorker {
                uid: inside.map(outside),
                threads: limits.threads.saturating_mul(apart),
                address_space: limits.address_space,
                files: limits.files,
                file_size: limits.file_size,
                granted: device.resources.iter().filter_map(|(_, fd)| named(fd)).collect(),
            }
        };
        let group = cgroup.and_then(|group| group.path().file_name());
        Ok(Declaration {
            layers,
            root: how.privileged,
            supervisor: ids.supervisor(layers),
            spawner: ids.spawner(layers),
            group: group.map(|name| name.to_string_lossy().into_owned()),
            inherited_filters: front.seccomp_filters,
            namespaces: front.namespaces,
            core_sched: false,
            workers: devices.iter().zip(limits).enumerate().map(worker).collect(),
            disks: Vec::new(),
        })
    }

    /// Looks at `processes`, all that the VM has.
    pub(crate) fn check(&self, processes: &[(String, Who, i32)]) -> Vec<Finding> {
        let mut findings: Vec<_> = processes.iter().map(|(_, who, pid)| self.check_one(*who, *pid)).collect();
        // Who is apart from the front may still share with a sibling, or with the spawner.
        let apart = [(Layer::User, "user"), (Layer::Pid, "pid"), (Layer::Mount, "mnt")];
        for (_, kind) in apart.into_iter().filter(|(layer, _)| self.layers.has(*layer)) {
            let mut owners = BTreeMap::<String, &str>::new();
            let spawner = |who: Who| !matches!(who, Who::Spawner);
            let mut order: Vec<_> = processes.iter().zip(&mut findings).collect();
            order.sort_by_key(|((_, who, _), _)| spawner(*who));
            for ((name, who, _), finding) in order {
                let jailed = matches!(who, Who::Spawner | Who::Worker(_) | Who::Starting(_) | Who::Spare);
                let found = finding.facts.as_ref().and_then(|facts| facts.namespaces.get(kind));
                let (true, Some(found)) = (jailed, found) else { continue };
                match owners.get(found) {
                    Some(owner) => {
                        finding.differences.push(format!("its {kind} namespace is that of {owner}"))
                    }
                    None => drop(owners.insert(found.clone(), name)),
                }
            }
        }
        if self.core_sched {
            cores(processes, &mut findings);
        }
        findings
    }

    /// Looks at process `pid`, which is `who`.
    fn check_one(&self, who: Who, pid: i32) -> Finding {
        let compared = !matches!(who, Who::Front | Who::Helper);
        let (facts, unseen) = match look(pid) {
            Ok((facts, unseen)) => (facts, unseen),
            Err(error) => {
                let differences = vec![error.to_string()];
                return Finding { facts: None, compared, unseen: Vec::new(), differences };
            }
        };
        let mut to = Compared { facts: &facts, declared: self, differences: Vec::new() };
        match who {
            Who::Front | Who::Helper => {}
            Who::Supervisor => self.supervisor(&mut to),
            Who::Init | Who::Spawner => self.spawner(&mut to),
            Who::Worker(index) | Who::Starting(index) => match self.workers.get(index) {
                Some(worker) => {
                    self.worker(worker, matches!(who, Who::Worker(_)), &mut to);
                    self.disks.iter().filter(|disks| disks.index == index).for_each(|disks| to.disks(disks));
                }
                None => to.wrong("no such worker was declared"),
            },
            Who::Spare => self.below_spawner(START_FILTERS, &BTreeSet::new(), &mut to),
        }
        let differences = to.differences;
        Finding { facts: Some(facts), compared, unseen, differences }
    }

    fn worker(&self, declared: &DeclaredWorker, serves: bool, to: &mut Compared<'_>) {
        let filters = if serves { START_FILTERS + 1 } else { START_FILTERS };
        self.below_spawner(filters, &declared.granted, to);
        to.id(declared.uid);
        if self.layers.has(Layer::Rlimits) {
            let both = |value: u64| (Some(value), Some(value));
            to.limit("Max processes", both(declared.threads.into()));
            to.limit("Max address space", both(declared.address_space));
            to.limit("Max open files", both(declared.files.into()));
            to.limit("Max file size", both(declared.file_size));
        }
    }

    /// What holds for workers and for their spares.
    fn below_spawner(&self, filters: u32, granted: &BTreeSet<String>, to: &mut Compared<'_>) {
        self.powers(self.layers, 0, filters, to);
        self.apart(to);
        if self.layers.has(Layer::User)
            && to.facts.uid_map.iter().map(|[_, _, count]| count).sum::<u32>() != 1
        {
            to.wrong(format!("its user namespace maps {:?}, not its own id alone", to.facts.uid_map));
        }
        if let Some(group) = &self.group
            && !to.facts.cgroup.contains(&format!("/{group}/"))
        {
            to.wrong(format!("it is in no group of its own in the VM's cgroup {group}"));
        }
        const KINDS: [&str; 6] = [
            "socket:",
            "pipe:",
            "/memfd:",
            "anon_inode:[eventfd]",
            "anon_inode:[eventpoll]",
            "anon_inode:[timerfd]",
        ];
        to.descriptors(|target| {
            KINDS.iter().any(|kind| target.starts_with(kind)) || granted.contains(target)
        });
    }

    fn spawner(&self, to: &mut Compared<'_>) {
        let has_capabilities = self.root || self.layers.has(Layer::User);
        self.powers(self.layers, if has_capabilities { KEPT } else { 0 }, 1, to);
        to.id(self.spawner);
        self.apart(to);
    }

    /// The namespaces, the root and the limits that the spawner has in common with all below it.
    fn apart(&self, to: &mut Compared<'_>) {
        for (layer, name) in NAMESPACES {
            to.namespace(name, self.layers.has(layer));
        }
        if self.layers.has(Layer::Mount) {
            to.empty_root();
        }
        if self.layers.has(Layer::Rlimits) {
            to.no_extras();
        }
    }

    fn supervisor(&self, to: &mut Compared<'_>) {
        let layers = lost(self.layers, self.root).iter().fold(self.layers, LayerSet::without);
        self.powers(layers, 0, 1, to);
        to.id(self.supervisor);
        // As root it needs no user namespace to have a mount namespace.
        let rooted = layers.has(Layer::Mount) && (self.root || layers.has(Layer::User));
        to.namespace("mnt", rooted);
        to.namespace("user", rooted && !self.root);
        if rooted {
            to.empty_root();
        }
        if layers.has(Layer::Rlimits) {
            to.no_extras();
        }
    }

    /// Capabilities, and what keeps a process from getting more of them, with so many seccomp programs of its own.
    fn powers(&self, layers: LayerSet, kept: u64, filters: u32, to: &mut Compared<'_>) {
        if layers.has(Layer::Caps) && to.facts.capabilities != [0, kept, kept, kept, 0] {
            let sets = to.facts.capabilities.map(|set| format!("{set:#x}")).join(" ");
            to.wrong(format!("its capabilities are {sets} (inheritable, permitted, effective, bounding, ambient), not 0 {kept:#x} {kept:#x} {kept:#x} 0"));
        }
        if to.facts.no_new_privs != layers.has(Layer::NoNewPrivs) && layers.has(Layer::NoNewPrivs) {
            to.wrong("no_new_privs is not set");
        }
        let wanted = self.inherited_filters.saturating_add(filters);
        let fewer = to.facts.thread_filters.iter().filter(|found| **found < wanted).count();
        if layers.has(Layer::Seccomp) && fewer > 0 {
            let threads = to.facts.threads;
            to.wrong(format!("{fewer} of its {threads} threads have fewer than {wanted} seccomp programs, of which {} are the front's", self.inherited_filters));
        }
        if !layers.has(Layer::Seccomp) && to.facts.seccomp_filters > self.inherited_filters {
            to.wrong("it has a seccomp program, which was to be left out");
        }
        if layers.has(Layer::Speculation) {
            to.no_speculation();
        }
        if self.root && !to.facts.groups.is_empty() {
            to.wrong(format!("it is in the groups {:?}", to.facts.groups));
        }
    }
}

/// The seccomp programs of a worker that does not serve yet: the spawner's and its own for the start.
const START_FILTERS: u32 = 2;

/// The layers that are namespaces, with the kernel's names.
const NAMESPACES: [(Layer, &str); 6] = [
    (Layer::User, "user"),
    (Layer::Pid, "pid"),
    (Layer::Mount, "mnt"),
    (Layer::Net, "net"),
    (Layer::Ipc, "ipc"),
    (Layer::Uts, "uts"),
];

/// Which core-scheduling cookies `processes` have: those of the sandbox one that the front has not.
fn cores(processes: &[(String, Who, i32)], findings: &mut [Finding]) {
    let cookies = |finding: &Finding| finding.facts.as_ref().map(|facts| facts.core_cookies.clone());
    let of = |wanted: Who| {
        let mut found = processes.iter().zip(&*findings).filter(move |((_, who, _), _)| *who == wanted);
        found.next().and_then(|(_, finding)| cookies(finding)).unwrap_or_default()
    };
    let (front, vm) = (of(Who::Front), of(Who::Supervisor));
    let is_one = vm.len() == 1 && !vm.contains(&0) && vm.is_disjoint(&front);
    for ((_, who, _), finding) in processes.iter().zip(findings) {
        let Some(found) = cookies(finding) else { continue };
        let may_not_look = finding.unseen.iter().any(|what| what.contains("cookies"));
        let jailed = !matches!(who, Who::Front | Who::Helper);
        if jailed && !(is_one && found == vm) && !may_not_look {
            finding.differences.push(format!(
                "its core-scheduling cookies are {found:x?}, the supervisor's are {vm:x?}, the front's {front:x?}: not one for all but the front"
            ));
        }
    }
}

/// What is said of one process.
struct Compared<'a> {
    facts: &'a Inspection,
    declared: &'a Declaration,
    differences: Vec<String>,
}

impl Compared<'_> {
    fn wrong(&mut self, what: impl Into<String>) {
        self.differences.push(what.into());
    }

    fn id(&mut self, wanted: Option<u32>) {
        let Some(wanted) = wanted else { return };
        if self.facts.uids != [wanted; 4] || self.facts.gids != [wanted; 4] {
            let (uids, gids) = (self.facts.uids, self.facts.gids);
            self.wrong(format!("its uids are {uids:?} and its gids {gids:?}, not {wanted}"));
        }
    }

    fn namespace(&mut self, name: &str, own: bool) {
        // Where it may not be looked at, that is told beside.
        let Some(found) = self.facts.namespaces.get(name) else { return };
        match (Some(found) != self.declared.namespaces.get(name), own) {
            (false, true) => self.wrong(format!("its {name} namespace is the front's")),
            (true, false) => self.wrong(format!("its {name} namespace, {found}, is not the front's")),
            _ => {}
        }
    }

    fn empty_root(&mut self) {
        let alone = match &self.facts.mounts[..] {
            // May not be looked at.
            [] => true,
            [root] => root.point == "/" && root.kind == "tmpfs" && root.options.contains("ro"),
            _ => false,
        };
        if !alone {
            let mounts = self.facts.mounts.iter().map(|mount| format!("{} ({})", mount.point, mount.kind));
            let mounts = mounts.collect::<Vec<_>>().join(", ");
            self.wrong(format!("it sees the mounts {mounts}, not one empty read-only tmpfs"));
        }
    }

    /// The kernel has these words where a thread may decide, and has not decided for good (`fs/proc/array.c`).
    fn no_speculation(&mut self) {
        let facts = self.facts;
        let open = |word: &&String| {
            let own = ["thread ", "conditional "].iter().any(|start| word.starts_with(start));
            own && !word.contains(" force ")
        };
        for (kind, words) in &facts.speculation {
            for word in words.iter().filter(open) {
                self.wrong(format!("its speculation ({kind}) could be held back, and is {word:?}"));
            }
        }
    }

    fn limit(&mut self, name: &str, wanted: (Option<u64>, Option<u64>)) {
        let found = self.facts.limits.get(name).copied();
        if found != Some(wanted) {
            let told = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
            let pair = |(soft, hard)| format!("{}/{}", told(soft), told(hard));
            let found = found.map_or("unknown".to_owned(), pair);
            self.wrong(format!("its limit {name} is {found}, not {}", pair(wanted)));
        }
    }

    fn disks(&mut self, declared: &DeclaredDisks) {
        let found = std::fs::read_to_string(&declared.file);
        let found = found.unwrap_or_else(|error| error.to_string());
        for line in declared.lines.iter().filter(|line| !found.lines().any(|other| other == *line)) {
            self.wrong(format!("its group's io.max is {:?}, without {line}", found.trim_end()));
        }
    }

    fn no_extras(&mut self) {
        for name in ["Max core file size", "Max locked memory", "Max msgqueue size", "Max realtime priority"]
        {
            self.limit(name, (Some(0), Some(0)));
        }
    }

    fn descriptors(&mut self, declared: impl Fn(&str) -> bool) {
        let facts = self.facts;
        for (number, target) in facts.descriptors.iter().filter(|(_, target)| !declared(target)) {
            self.wrong(format!("its descriptor {number} is {target}, which it was not granted"));
        }
    }
}

impl Finding {
    /// The process called `name` in a few lines.
    pub(crate) fn lines(&self, name: &str, pid: i32) -> String {
        let verdict = match (self.differences.len(), self.unseen.is_empty()) {
            (0, _) if !self.compared => "not compared: it is outside the sandbox".to_owned(),
            (0, true) => "as declared".to_owned(),
            (0, false) => format!("as declared, as far as it may be seen (not {})", self.unseen.join(", ")),
            (1, _) => "DIFFERS in 1 point".to_owned(),
            (count, _) => format!("DIFFERS in {count} points"),
        };
        let mut text = format!("  {name:<12} {pid:>8}  {verdict}\n");
        for difference in &self.differences {
            text.push_str(&format!("      DIFFERS: {difference}\n"));
        }
        let Some(facts) = &self.facts else { return text };
        let [_, permitted, _, bounding, _] = facts.capabilities;
        text.push_str(&format!(
            "      uid {}, capabilities {permitted:#x} of {bounding:#x}, no_new_privs {}, {} seccomp programs, {} threads\n",
            facts.uids[1],
            if facts.no_new_privs { "set" } else { "not set" },
            facts.seccomp_filters,
            facts.threads
        ));
        let words = |(kind, words): (&&str, &BTreeSet<String>)| {
            format!("{kind} {}", words.iter().map(String::as_str).collect::<Vec<_>>().join("/"))
        };
        let mut held: Vec<String> = facts.speculation.iter().map(words).collect();
        held.extend(
            (!facts.core_cookies.is_empty()).then(|| format!("core cookies {:x?}", facts.core_cookies)),
        );
        text.push_str(&format!("      speculation {}\n", held.join(", ")));
        let list = |words: Vec<String>| if words.is_empty() { "-".to_owned() } else { words.join(", ") };
        let namespaces = facts.namespaces.values().cloned().collect();
        text.push_str(&format!("      namespaces  {}\n", list(namespaces)));
        let mounts =
            facts.mounts.iter().map(|mount| format!("{} {}", mount.point, mount.kind)).collect::<Vec<_>>();
        let shown = if mounts.len() > 4 { vec![format!("{} of them", mounts.len())] } else { mounts };
        text.push_str(&format!("      mounts      {}\n", list(shown)));
        text.push_str(&format!(
            "      cgroup      {}\n",
            list(facts.cgroup.lines().map(str::to_owned).collect())
        ));
        let mut kinds = BTreeMap::<&str, Vec<String>>::new();
        for (number, target) in &facts.descriptors {
            let kind =
                target.split(['[', ' ']).next().filter(|kind| *kind != "anon_inode:").unwrap_or(target);
            let kind = kind.split_once(":").map_or(kind, |(kind, rest)| {
                if kind.starts_with('/') {
                    target
                } else if rest.is_empty() {
                    kind
                } else {
                    target
                }
            });
            kinds.entry(kind).or_default().push(number.to_string());
        }
        let descriptors = kinds.into_iter().map(|(kind, numbers)| format!("{kind} ({})", numbers.join(" ")));
        text.push_str(&format!("      descriptors {}\n", list(descriptors.collect())));
        let limits = ["Max processes", "Max open files", "Max address space", "Max file size"];
        let limits = limits.into_iter().filter_map(|name| {
            let (soft, _) = facts.limits.get(name)?;
            Some(format!(
                "{} {}",
                name.trim_start_matches("Max "),
                soft.map_or("unlimited".to_owned(), |limit| limit.to_string())
            ))
        });
        text.push_str(&format!("      limits      {}\n", list(limits.collect())));
        text
    }
}

/// The path behind a descriptor of this process, if it is a file of the host's.
fn named(fd: &impl AsFd) -> Option<String> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).ok()?;
    let target = target.to_string_lossy().into_owned();
    (target.starts_with('/') && !target.starts_with("/memfd:")).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_jail::Refusal;

    fn declared(layers: LayerSet) -> Declaration {
        let how = Confinement { layers, privileged: true, id: None, refusal: Refusal::Kill };
        let mut declaration = Declaration::new(&how, Ids::Own, None, &[], &[Limits::SMALL]).unwrap();
        declaration.workers.push(DeclaredWorker {
            uid: Some(1),
            threads: 1,
            address_space: 1,
            files: 1,
            file_size: 1,
            granted: BTreeSet::new(),
        });
        declaration.root = false;
        declaration
    }

    /// This process is in no sandbox, which every layer that is declared must show.
    #[test]
    fn a_process_outside_the_sandbox_differs_in_every_layer() {
        let own = std::process::id() as i32;
        let mut all = declared(LayerSet::all());
        all.group = Some("vm".to_owned());
        let found = all.check_one(Who::Worker(0), own).differences;
        for part in [
            "user namespace",
            "pid namespace",
            "mnt namespace",
            "net namespace",
            "ipc",
            "uts",
            "seccomp",
            "uids are",
            "Max open files",
            "mounts",
            "no_new_privs",
            "the VM's cgroup vm",
        ] {
            assert!(found.iter().any(|difference| difference.contains(part)), "{part}: {found:#?}");
        }
        let none = declared(LayerSet::none());
        let found = none.check_one(Who::Supervisor, own).differences;
        assert!(found.is_empty(), "{found:#?}");
        let gone = none.check_one(Who::Spawner, i32::MAX);
        assert!(gone.lines("spawner", 1).contains("DIFFERS"), "{gone:?}");
        assert!(none.check_one(Who::Worker(9), own).differences[0].contains("no such worker"));
        assert!(none.check_one(Who::Front, own).lines("front", 1).contains("not compared"));
    }

    #[test]
    fn a_group_that_does_not_limit_disks_differs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut declared = declared(LayerSet::none());
        let line = "8:0 rbps=5 wbps=5 riops=max wiops=max";
        declared.disks =
            vec![DeclaredDisks { index: 0, file: file.path().to_owned(), lines: vec![line.to_owned()] }];
        let about = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let found = declared.check_one(Who::Worker(0), std::process::id().cast_signed()).differences;
            found.iter().any(|difference| difference.contains("io.max"))
        };
        assert!(about("") && about("8:0 rbps=6 wbps=5 riops=max wiops=max\n"));
        assert!(!about(&format!("1:2 rbps=1 wbps=max riops=max wiops=max\n{line}\n")));
    }

    #[test]
    fn programs_that_were_inherited_do_not_count() {
        let own = std::process::id() as i32;
        let (facts, _) = look(own).unwrap();
        let mut wanted = declared(LayerSet::all());
        let about = |wanted: &Declaration, filters| {
            let mut to = Compared { facts: &facts, declared: wanted, differences: Vec::new() };
            wanted.powers(wanted.layers, 0, filters, &mut to);
            to.differences.iter().any(|difference| difference.contains("seccomp programs"))
        };
        assert!(!about(&wanted, 0) && about(&wanted, 1));
        wanted.inherited_filters += 1;
        assert!(about(&wanted, 0));
    }

    /// Two processes with these cookies, of which the front is the first.
    fn with_cookies(front: &[u64], others: [&[u64]; 2]) -> usize {
        let own = std::process::id().cast_signed();
        let (facts, _) = look(own).unwrap();
        let finding = |cookies: &[u64]| Finding {
            facts: Some(Inspection { core_cookies: cookies.iter().copied().collect(), ..facts.clone() }),
            compared: true,
            unseen: Vec::new(),
            differences: Vec::new(),
        };
        let processes = [Who::Front, Who::Supervisor, Who::Worker(0)].map(|who| (String::new(), who, own));
        let mut findings = vec![finding(front), finding(others[0]), finding(others[1])];
        cores(&processes, &mut findings);
        findings.iter().map(|finding| finding.differences.len()).sum()
    }

    #[test]
    fn who_may_share_a_core_is_told() {
        assert_eq!(with_cookies(&[7], [&[9], &[9]]), 0);
        assert_eq!(with_cookies(&[0], [&[9], &[9]]), 0);
        // The front's, none, another's, and a thread without.
        assert_eq!(with_cookies(&[9], [&[9], &[9]]), 2);
        assert_eq!(with_cookies(&[0], [&[0], &[0]]), 2);
        assert_eq!(with_cookies(&[], [&[], &[]]), 2);
        assert_eq!(with_cookies(&[7], [&[9], &[8]]), 1);
        assert_eq!(with_cookies(&[7], [&[0, 9], &[9]]), 2);
    }

    #[test]
    fn speculation_that_could_be_held_back_differs() {
        let own = std::process::id().cast_signed();
        let (mut facts, _) = look(own).unwrap();
        let declared = declared(LayerSet::all());
        let mut differences = |words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            facts.speculation = BTreeMap::from([("store bypass", words)]);
            let mut to = Compared { facts: &facts, declared: &declared, differences: Vec::new() };
            declared.powers(LayerSet::none().with(Layer::Speculation), 0, 0, &mut to);
            to.differences.iter().filter(|text| text.contains("store bypass")).count()
        };
        for fine in ["vulnerable", "not vulnerable", "thread force mitigated", "conditional force disabled"] {
            assert_eq!(differences(&[fine]), 0, "{fine}");
        }
        let open = ["thread vulnerable", "thread mitigated", "conditional enabled", "conditional disabled"];
        for open in open {
            assert_eq!(differences(&[open, "thread force mitigated"]), 1, "{open}");
        }
    }

    #[test]
    fn siblings_that_share_a_namespace_differ() {
        let own = std::process::id() as i32;
        let worker = |name: &str, who| (name.to_owned(), who, own);
        let processes = [worker("rtc", Who::Worker(0)), worker("spawner", Who::Spawner)];
        let found = declared(LayerSet::all()).check(&processes);
        let shared = |finding: &Finding| {
            finding.differences.iter().filter(|text| text.contains("namespace is that of spawner")).count()
        };
        assert_eq!(found.iter().map(shared).collect::<Vec<_>>(), [3, 0], "{found:#?}");
    }
}
