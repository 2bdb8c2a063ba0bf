//! QEMU as the front end of devices that `cellblock vhost-user` serves. Its guest is the small Linux one, emulated.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::{Lab, User, Vm, skip};

/// How long a step of an emulated guest may take: it runs some fifty times slower than a real one, beside others.
pub const PATIENCE: Duration = Duration::from_secs(180);
const PROGRAM: &str = "qemu-system-x86_64";

/// A QEMU that is yet to be started.
pub struct Qemu {
    arguments: Vec<String>,
    devices: u32,
}

impl Qemu {
    /// One whose guest has `cpus` processors and whose init does `what`; `None`, and a line that says why, where QEMU or the
    /// guest's kernel is missing.
    pub fn find(lab: &Lab, cpus: u32, what: &str) -> Option<Self> {
        let images = lab.places().images_for_qemu();
        if !Command::new(PROGRAM).arg("--version").output().is_ok_and(|output| output.status.success()) {
            skip(&format!("{PROGRAM} is not here"));
            return None;
        }
        if !images.join("bzImage").exists() {
            skip(&format!("{} has no kernel (scripts/images)", images.display()));
            return None;
        }
        let path = |name: &str| images.join(name).display().to_string();
        let cmdline = format!("console=ttyS0 panic=-1 quiet reboot=t cell.do=pci,load,{what}");
        let arguments = [
            "-machine q35,memory-backend=mem -accel tcg,thread=single -cpu max -m 256",
            // Back ends map the guest's memory.
            "-object memory-backend-memfd,id=mem,size=256M,share=on",
            "-nodefaults -display none -no-reboot -serial stdio",
            &format!("-smp {cpus} -kernel {} -initrd {}", path("bzImage"), path("initrd.cpio")),
        ];
        let mut arguments: Vec<String> =
            arguments.iter().flat_map(|words| words.split(' ').map(str::to_owned)).collect();
        arguments.extend(["-append".to_owned(), cmdline]);
        Some(Qemu { arguments, devices: 0 })
    }

    /// Adds the device `device` (`vhost-user-blk-pci`, with its options) of the back end at `socket`.
    #[must_use]
    pub fn with(mut self, device: &str, socket: &Path) -> Self {
        let id = format!("c{}", self.devices);
        self.devices += 1;
        // A disk's back end that ends is waited for; QEMU's other front ends cannot.
        let again = if device.starts_with("vhost-user-blk") { ",reconnect=1" } else { "" };
        let chardev = format!("socket,id={id},path={}{again}", socket.display());
        self.arguments.extend([
            "-chardev".into(),
            chardev,
            "-device".into(),
            format!("{device},chardev={id}"),
        ]);
        self
    }

    /// Adds a network device of the back end at `socket`.
    #[must_use]
    pub fn with_net(mut self, socket: &Path) -> Self {
        let id = format!("c{}", self.devices);
        self.devices += 1;
        for (name, value) in [
            ("-chardev", format!("socket,id={id},path={}", socket.display())),
            ("-netdev", format!("vhost-user,id=n{id},chardev={id}")),
            // With MSI-X and without KVM this front end of QEMU 7.2 ends by a fault of its own (it unmasks an irqfd that
            // it never made).
            ("-device", format!("virtio-net-pci,netdev=n{id},romfile=,vectors=0")),
        ] {
            self.arguments.extend([name.to_owned(), value]);
        }
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn start(&self) -> Result<Vm> {
        Ok(Vm::start(&PathBuf::from(PROGRAM), &User::Own, &self.arguments)?.patient(PATIENCE))
    }
}
