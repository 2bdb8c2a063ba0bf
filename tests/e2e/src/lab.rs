//! What a test works in: a folder of its own with its own copy of the programs.
#![allow(clippy::expect_used, clippy::unwrap_used)] // Part of the tests: a lab that cannot be made fails the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::leftovers::Scope;
use crate::network::Network;
use crate::processes::Tree;
use crate::user::ORDINARY;
use crate::{Places, Terminal, User, Vm, skip};

/// One test's programs, guests and names. Everything in it may be read by any user.
pub struct Lab {
    /// Goes before the programs do.
    network: Network,
    folder: TempDir,
    places: Places,
    name: String,
}

/// A VM of a [`Lab`], yet to be started.
pub struct Plan<'a> {
    lab: &'a Lab,
    user: User,
    id: String,
    arguments: Vec<String>,
}

static VMS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// A lab for bare-metal guests; `None`, and a line that says why, where none can run.
    pub fn with_guests(name: &str) -> Option<Self> {
        let places = Places::find();
        if let Some(why) = places.why_no_guests() {
            skip(&why);
            return None;
        }
        Some(Self::new(name, places).expect("the test's folder"))
    }

    /// A lab for Linux guests; `None`, and a line that says why, where none can run.
    pub fn with_images(name: &str) -> Option<Self> {
        let places = Places::find();
        let no_images = || {
            Some("Linux guests run in the emulated host (scripts/host), or with CELLBLOCK_IMAGES".to_owned())
        };
        if let Some(why) =
            places.why_no_vm().or_else(|| if places.images.is_none() { no_images() } else { None })
        {
            skip(&why);
            return None;
        }
        Some(Self::new(name, places).expect("the test's folder"))
    }

    /// A lab for `cellblock vhost-user`, which needs no KVM; `None`, and a line that says why, where there is no program.
    pub fn with_program(name: &str) -> Option<Self> {
        let places = Places::find();
        if !places.program().exists() {
            skip(&format!("{} is not built (scripts/build)", places.program().display()));
            return None;
        }
        Some(Self::new(name, places).expect("the test's folder"))
    }

    /// A lab for Debian on `disks` of this machine; `None`, and a line that says why, where there is none.
    pub fn with_debian(name: &str, disks: &[&str]) -> Option<Self> {
        let places = Places::find();
        let missing = || disks.iter().find(|disk| !Path::new(disk).exists());
        let why = if places.debian.is_none() {
            Some("Debian is not here; it is given by CELLBLOCK_DEBIAN (scripts/test emulated)".to_owned())
        } else {
            places
                .why_no_vm()
                .or_else(|| missing().map(|disk| format!("no disk {disk} (scripts/host --disk)")))
        };
        if let Some(why) = why {
            skip(&why);
            return None;
        }
        Some(Self::new(name, places).expect("the test's folder"))
    }

    fn new(name: &str, found: Places) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(&format!("cellblock-{name}-")).tempdir()?;
        let mut places = found.clone();
        copy_readable(&found.dist, &folder.path().join("dist"))?;
        places.dist = folder.path().join("dist");
        if found.guests.is_dir() {
            copy_readable(&found.guests, &folder.path().join("guests"))?;
            places.guests = folder.path().join("guests");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let network = Network::find(&places.program());
        if matches!(network, Network::None) {
            // Then it is not among the workers that every device has.
            let _ = fs::remove_file(folder.path().join("dist/libexec/cellblock/net"));
        }
        Ok(Lab { network, folder, places, name: name.to_owned() })
    }

    /// The lab's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The lab's copies.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// What this lab's VMs leave behind, if anything.
    pub fn scope(&self) -> Scope {
        Scope { programs: self.folder.path().to_owned(), id: format!("{}-{}", self.name, std::process::id()) }
    }

    /// The users to test as: the own one, and where possible an ordinary one in group kvm.
    pub fn users(&self) -> Vec<User> {
        let mut users = vec![User::Own];
        match User::ordinary(self.folder.path()) {
            Ok(user) => users.push(user),
            Err(why) => skip(&format!("as an ordinary user: {why}")),
        }
        users
    }

    /// A VM with a bare-metal guest.
    pub fn guest(&self, guest: &str) -> Plan<'_> {
        self.plan().with(["--kernel", &self.places.guest(guest).display().to_string(), "--memory", "64M"])
    }

    /// A VM with Debian's kernel (`bzImage` or `vmlinux`), whose init does `what`.
    pub fn linux(&self, kernel: &str, what: &str) -> Plan<'_> {
        let images = self.places.images.clone().unwrap_or_default();
        let cmdline = format!("console=ttyS0 reboot=k panic=-1 quiet cell.do={what}");
        self.plan().with([
            "--kernel",
            &images.join(kernel).display().to_string(),
            "--initrd",
            &images.join("initrd.cpio").display().to_string(),
            "--cmdline",
            &cmdline,
        ])
    }

    /// A VM with Debian on `disk`, a copy of its root file system; `options` are those of `--disk`.
    pub fn debian(&self, disk: &str, options: &str) -> Plan<'_> {
        let folder = self.places.debian.clone().unwrap_or_default();
        let path = |name: &str| folder.join(name).display().to_string();
        let cmdline = fs::read_to_string(folder.join("cmdline")).expect("the folder of scripts/debian");
        let disk = format!("path={disk}{options}");
        let (kernel, initrd) = (path("vmlinuz"), path("initrd.img"));
        let arguments =
            ["--kernel", &kernel, "--initrd", &initrd, "--cmdline", cmdline.trim(), "--disk", &disk];
        self.plan().with(arguments)
    }

    /// A file of this content in the lab's folder, which any user may write.
    pub fn image(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).expect("the lab's folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("the lab's file");
        path
    }

    /// A folder in the lab's, in which any user may make sockets.
    pub fn sockets(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).expect("the lab's folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("the lab's folder");
        path
    }

    /// A device for other VMMs, at `socket`: `cellblock vhost-user`.
    pub fn back_end(&self, socket: &Path) -> Plan<'_> {
        let mut plan = self.plan();
        "vhost-user".clone_into(&mut plan.arguments[0]);
        plan.with(["--socket".to_owned(), socket.display().to_string(), "-vv".to_owned()])
    }

    /// A VM that is told nothing but its name.
    pub fn plan(&self) -> Plan<'_> {
        let id = format!("{}-{}", self.scope().id, VMS.fetch_add(1, Ordering::Relaxed));
        Plan { lab: self, user: User::Own, arguments: vec!["run".into(), "--id".into(), id.clone()], id }
    }
}

impl Plan<'_> {
    /// Adds arguments.
    #[must_use]
    pub fn with<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds one of each device that a VM only has when it is asked for, so that every worker runs.
    #[must_use]
    pub fn with_every_device(self) -> Self {
        let image = self.lab.image(&format!("{}.img", self.id), &[0; 4096]);
        let log = self.lab.image(&format!("{}.log", self.id), &[]);
        let socket = self.lab.sockets("sockets").join(&self.id);
        let options = [
            ("--disk", format!("path={}", image.display())),
            ("--console", format!("file={},name=log", log.display())),
            ("--vsock", format!("cid=3,path={}", socket.display())),
        ];
        let net = self.lab.network.option(ORDINARY).map(|option| ("--net", option));
        let options = options.into_iter().chain(net).flat_map(|(name, value)| [name.to_owned(), value]);
        let plain = ["--rng", "--balloon"].map(String::from);
        self.with(plain.into_iter().chain(options))
    }

    /// Starts it as `user`.
    #[must_use]
    pub fn as_user(mut self, user: &User) -> Self {
        self.user = user.clone();
        self
    }

    /// The VM's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What `cellblock VERB ID …` says of this VM: its output, or why it failed.
    ///
    /// # Errors
    /// Its messages.
    pub fn tell(&self, verb: &str, more: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.lab.places.program());
        let output = command.args([verb, &self.id]).args(more).output().expect("cellblock is executable");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Starts it on a terminal.
    pub fn start_on(&self, terminal: &Terminal) -> Vm {
        let program = self.lab.places.program();
        Vm::start_on_terminal(&program, &self.user, &self.arguments, terminal)
            .expect("cellblock is executable")
    }

    /// Starts it.
    pub fn start(&self) -> Vm {
        Vm::start(&self.lab.places.program(), &self.user, &self.arguments).expect("cellblock is executable")
    }

    /// Starts the VM, whose guest idles once it has written something, and returns it with its processes.
    pub fn idle(&self) -> (Vm, Tree) {
        let vm = self.start();
        vm.expect_any().unwrap();
        let tree = vm.processes(self.id()).unwrap();
        (vm, tree)
    }
}

fn copy_readable(from: &Path, to: &Path) -> Result<PathBuf> {
    fs::create_dir_all(to)?;
    for tool in [&["cp", "-R"][..], &["chmod", "-R", "a+rX"][..]] {
        let mut command = Command::new(tool[0]);
        command.args(&tool[1..]);
        if tool[0] == "cp" {
            command.arg(from.join("."));
        }
        let output = command.arg(to).output().with_context(|| tool[0].to_owned())?;
        ensure!(output.status.success(), "{}: {}", tool[0], String::from_utf8_lossy(&output.stderr));
    }
    Ok(to.to_owned())
}
