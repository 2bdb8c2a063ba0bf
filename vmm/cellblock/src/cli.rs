//! The command line: what can be said, and how it becomes a configuration.

use std::path::PathBuf;

use cellblock_config::{BackEnd, BackEndDevice, ByteSize, ConfigError, RawConfig, Rng, VmConfig, VmId};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};

const STATUSES: &str = "\
Exit status:
  0  the guest powered off or rebooted (a line on standard error says which)
  1  something else failed
  2  wrong usage or configuration
  3  the VM was refused a start: a missing file, host feature or sandbox layer
  4  the guest triple-faulted
  5  the hypervisor could not run the guest any further (RIP and instruction bytes are printed)
  6  a device failed for good: its workers ended again and again
  7  the VM was ended from outside, by a signal or the escape sequence";

const RUN_EXAMPLES: &str = "\
Examples:
  cellblock run --kernel vmlinuz --initrd initrd.img
  cellblock run --kernel vmlinux --cpus 2 --memory 512M --serial file=guest.log
  cellblock run --config guest.toml --id web-1
  cellblock run --kernel vmlinuz --initrd initrd.img --disk path=root.img --rng --cmdline root=/dev/vda

On a terminal the guest gets every key but the escape Ctrl-A: Ctrl-A x ends the VM, Ctrl-A p presses its power
button, Ctrl-A Ctrl-A sends one Ctrl-A.

A configuration file has the same names: kernel = \"vmlinuz\", cpus = 2, memory = \"512M\", on-reboot = \"restart\".";

const VHOST_USER_EXAMPLES: &str = "\
Examples:
  cellblock vhost-user --socket disk.sock --disk path=root.img,queues=2
  cellblock vhost-user --socket rng.sock --rng --once

With QEMU as the front end, whose guest memory must be shared:
  qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=512M,share=on -machine q35,memory-backend=mem \\
    -chardev socket,id=disk,path=disk.sock -device vhost-user-blk-pci,chardev=disk,num-queues=2

  … -chardev socket,id=net,path=net.sock -netdev vhost-user,id=net,chardev=net -device virtio-net-pci,netdev=net

Front ends are served one after the other, each by a worker of its own in the same sandbox as a VM's; the next one waits until
the last is gone. Who may connect is who may open the socket: it is made for this user alone.

Exit status:
  0  told to end by a signal, or with --once the front end is gone
  1  something else failed
  2  wrong usage
  3  refused a start: a missing file, host feature or sandbox layer
  6  with --once: the worker failed, or the front end broke the protocol";

/// A virtual machine monitor that runs every device model in its own sandboxed process.
#[derive(Debug, Parser)]
#[command(name = "cellblock", version, after_help = STATUSES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest and stay with it until it ends.
    Run(Box<RunArgs>),
    /// Be a device of other VMMs' guests, over vhost-user.
    VhostUser(Box<VhostUserArgs>),
    /// Show the running VMs, or one VM's processes.
    Ps(PsArgs),
    /// Show a VM's balloon and its guest's memory, or set the balloon's size.
    Balloon(BalloonArgs),
    /// Show how the workers of a device died: the signal or refused system call, the last exits, the last log lines.
    Blackbox(BlackboxArgs),
    /// Give a device of a running VM a new worker process; the guest notices a pause at most.
    Restart(RestartArgs),
    /// Bring a device back that has failed, its workers having died too often.
    Revive(RestartArgs),
    /// Have another binary take over from a device's worker while the guest uses the device; if it cannot, the old one goes on.
    Upgrade(UpgradeArgs),
    /// Stop a VM where it is: its vCPUs between two instructions, its devices between two requests.
    Pause(PauseArgs),
    /// Let a paused VM go on.
    Resume(PauseArgs),
    /// Make or delete a tap interface that stays, for `--net tap=NAME`.
    Tap(TapArgs),
    /// Say what this host offers and lacks, what that means, and how to mend it.
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES, after_long_help = format!("{RUN_EXAMPLES}\n\n{STATUSES}"))]
pub(crate) struct RunArgs {
    /// Kernel image: a bzImage, or an ELF with the Linux 64-bit or the PVH entry.
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,

    /// Initial RAM disk.
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,

    /// Kernel command line, in place of the default one.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,

    /// How an ELF kernel is entered: auto (PVH if it has the note), linux64 or pvh.
    #[arg(long, value_name = "NAME")]
    boot_protocol: Option<String>,

    /// Number of vCPUs, 1 to 32 [default: 1].
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,

    /// Guest RAM, a multiple of 2M [default: 256M].
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    memory: Option<ByteSize>,

    /// Back guest RAM with the host's huge pages.
    #[arg(long)]
    hugepages: bool,

    /// Where the serial port leads: stdio, null, file=PATH[,limit=SIZE] or socket=PATH; each with [,rate=BYTES]
    /// [default: stdio, or null if a console is on stdio].
    #[arg(long, value_name = "SINK")]
    serial: Option<String>,

    /// A disk, path=PATH[,readonly][,id=NAME][,queues=N][,cache=writeback|direct|unsafe][,format=raw|qcow2]
    /// [,backing=PATH][,rate=BYTES][,ops=N]; may be repeated.
    ///
    /// The image is a file or, if raw, a block device; its format is as told, never guessed. What a qcow2 image is
    /// based on is told too, backing=PATH for each file from the image down: names in images are never followed. A writable
    /// image cannot be another VM's at the same time, nor one that another is based on. A flush of the guest reaches stable storage, except with cache=unsafe; cache=direct goes past
    /// the host's page cache. rate and ops limit bytes and requests a second; +BURST after the number says how much more may
    /// come at once. A comma in a path is written twice.
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,

    /// A network device, tap=NAME or passt, with [,id=NAME][,mac=ADDRESS][,mtu=N][,queues=N][,offloads=on|off]
    /// [,rate=BYTES][,ops=N]; may be repeated.
    ///
    /// A tap is made by `cellblock tap create`; passt needs no privileges and gives the guest what this user may reach. The
    /// limits hold in each direction.
    #[arg(long, value_name = "NET")]
    net: Vec<String>,

    /// Give the guest an entropy device, with --rng=[rate=BYTES][,ops=N].
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    rng: Option<String>,

    /// A console port (virtio), a sink as for --serial with [,name=NAME]; may be repeated, and the first is /dev/hvc0.
    ///
    /// The others are /dev/vport0pN, and by their names in /sys/class/virtio-ports. The console's size is its terminal's. A port
    /// waits for a sink that does not take its bytes, and its guest with it; what it sends to a socket without a client is
    /// lost. One of all ports and --serial can be stdio; if that is the first port, the default kernel command line has its
    /// messages there.
    #[arg(long, value_name = "SINK")]
    console: Vec<String>,

    /// A balloon, size=SIZE (what it takes from the guest at first) with [,deflate-on-oom=on|off][,statistics=on|off]
    /// [,reporting=on|off]; `cellblock balloon` shows and sets it later.
    ///
    /// What it holds is the host's, and with reporting also what the guest does not use. A guest that has no other memory takes
    /// it back, except with deflate-on-oom=off. With --hugepages only reported memory goes back, in whole huge pages.
    #[arg(long, value_name = "BALLOON", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    balloon: Option<String>,

    /// A socket device, cid=N,path=PATH: who connects to PATH and writes `CONNECT port` reaches the guest, and the guest's own
    /// connections to the host go to PATH_port.
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<String>,

    /// What a reboot of the guest does: exit or restart [default: exit].
    #[arg(long, value_name = "WHAT")]
    on_reboot: Option<String>,

    /// The longest spin for a device's answer before sleeping, in µs; 0 = never spin, and leave each
    /// worker to the host's scheduler [default: 100].
    #[arg(long, value_name = "N")]
    poll_max_us: Option<u32>,

    /// How many jailed processes wait beside each device's worker to take its place when it dies, 0 to 2 [default: 0].
    ///
    /// A restart is faster by what starting and jailing a process takes; each costs about 50 KiB of memory.
    #[arg(long, value_name = "N")]
    spares: Option<u32>,

    /// When the VM ends, say how often its guest accessed which register of which device, on standard error; =json as one line.
    ///
    /// Only what left the guest to a device counts: not queue notifications of virtio drivers, reads of virtio registers, and writes
    /// to ports where nobody is and every PC guest writes (0x80 among them), which KVM takes by itself.
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    exit_stats: Option<String>,

    /// How many seconds the guest may take after SIGTERM has pressed its power button [default: 10].
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,

    /// A TOML or JSON file with the same names; the command line overrides it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The VM's name, for `cellblock ps` [default: vm-PID].
    #[arg(long, value_name = "NAME")]
    id: Option<String>,

    /// Where the device workers are [default: ../libexec/cellblock beside this program].
    #[arg(long, value_name = "DIR")]
    worker_dir: Option<PathBuf>,

    /// Do without a sandbox layer that this host lacks (`cellblock doctor` lists them); may be repeated.
    #[arg(long, value_name = "LAYER")]
    without_layer: Vec<String>,

    /// Let the host run nothing else on a core's other threads while this VM runs on one.
    ///
    /// All processes of the sandbox get one core-scheduling cookie; the front gets another, and passt has none. A kernel without core scheduling (Linux
    /// 5.14, CONFIG_SCHED_CORE) refuses the VM; where each core runs one thread there is nothing to do.
    #[arg(long)]
    core_sched: bool,

    /// Boot Linux even on a host that emulates kernel code.
    #[arg(long)]
    force: bool,

    /// Say more: -v for what happens, -vv for what the workers say.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Args)]
#[command(after_help = VHOST_USER_EXAMPLES)]
#[command(group = ArgGroup::new("device").required(true).args(["disk", "net", "rng", "vsock"]))]
pub(crate) struct VhostUserArgs {
    /// Where front ends connect: a Unix socket, made for this user alone and removed at the end.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// A disk, as for `cellblock run`.
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,

    /// A network device with one queue pair, as for `cellblock run`.
    #[arg(long, value_name = "NET")]
    net: Option<String>,

    /// An entropy device, as for `cellblock run`.
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    rng: Option<String>,

    /// A socket device, as for `cellblock run`.
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<String>,

    /// End with the first front end.
    #[arg(long)]
    once: bool,

    /// The name for `cellblock ps` [default: vhost-user-PID].
    #[arg(long, value_name = "NAME")]
    id: Option<String>,

    /// Where the device workers are [default: ../libexec/cellblock beside this program].
    #[arg(long, value_name = "DIR")]
    worker_dir: Option<PathBuf>,

    /// Do without a sandbox layer that this host lacks (`cellblock doctor` lists them); may be repeated.
    #[arg(long, value_name = "LAYER")]
    without_layer: Vec<String>,

    /// Say more: -v for what happens, -vv for what the worker says.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

impl VhostUserArgs {
    /// What this command line describes.
    ///
    /// # Errors
    /// A value is out of bounds.
    pub(crate) fn config(self) -> Result<BackEnd, ConfigError> {
        let id = self.id.unwrap_or_else(|| format!("vhost-user-{}", std::process::id()));
        Ok(BackEnd {
            id: VmId::new(&id)?,
            socket: self.socket,
            once: self.once,
            device: BackEndDevice::new(self.disk, self.net, self.rng, self.vsock)?,
            worker_dir: self.worker_dir,
            without_layers: self.without_layer,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// One VM's name; without it, all VMs of this user (of all users, for root).
    pub id: Option<String>,
    /// Show what the kernel says of each process' sandbox, and whether that is as declared when the VM was started; fails if
    /// something differs, or a VM cannot be asked. Only root may see all of it.
    #[arg(long)]
    pub security: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BalloonArgs {
    /// The VM's name.
    pub id: String,
    /// What the balloon is to take from the guest, a multiple of 4K; the guest does it as it can.
    #[arg(value_name = "SIZE", value_parser = byte_size)]
    pub size: Option<ByteSize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BlackboxArgs {
    /// The VM's name.
    pub id: String,
    /// The device, as `cellblock ps` names it.
    pub device: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// The VM's name.
    pub id: String,
    /// The device, as `cellblock ps` names it.
    pub device: String,
}

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The VM's name.
    pub id: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpgradeArgs {
    /// The VM's name.
    pub id: String,
    /// The device, as `cellblock ps` names it.
    pub device: String,
    /// The binary, with its start program beside it, BINARY.bpf, if that is another one [default: ../libexec/cellblock/DEVICE beside
    /// this program]. It gets the sandbox that the VM was started with.
    #[arg(long, value_name = "BINARY")]
    pub binary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TapArgs {
    #[command(subcommand)]
    pub command: TapCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TapCommand {
    /// Make a tap of several queues, take it into use, and keep it.
    Create {
        /// The interface's name: 1 to 15 letters, digits, '-', '_' and '.'.
        name: String,
        /// Who may run a VM on it, beside root: a name or a number.
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// The host's own address on it and its network's bits, as 192.168.70.1/24.
        #[arg(long, value_name = "ADDRESS/BITS")]
        address: Option<String>,
    },
    /// Delete a tap that nobody uses.
    Delete {
        /// The interface's name.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn byte_size(text: &str) -> Result<ByteSize, &'static str> {
    text.parse()
}

impl RunArgs {
    /// The VM that this command line and its configuration file describe.
    ///
    /// # Errors
    /// The file cannot be read, or a value is out of bounds.
    pub(crate) fn vm_config(self) -> Result<VmConfig, ConfigError> {
        let file = self.config.as_deref().map_or(Ok(RawConfig::default()), RawConfig::from_file)?;
        let set = |flag: bool| flag.then_some(true);
        let list = |given: Vec<String>| (!given.is_empty()).then_some(given);
        let line = RawConfig {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            boot_protocol: self.boot_protocol,
            cpus: self.cpus,
            memory: self.memory,
            hugepages: set(self.hugepages),
            serial: self.serial,
            disk: list(self.disk),
            net: list(self.net),
            rng: self.rng.map(Rng::Options),
            console: list(self.console),
            balloon: self.balloon,
            vsock: self.vsock,
            on_reboot: self.on_reboot,
            poll_max_us: self.poll_max_us,
            spares: self.spares,
            exit_stats: self.exit_stats,
            stop_timeout: self.stop_timeout,
            id: self.id,
            worker_dir: self.worker_dir,
            without_layer: list(self.without_layer),
            core_sched: set(self.core_sched),
            force: set(self.force),
        };
        file.overlaid_with(line).try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_become_a_configuration() {
        let cli =
            Cli::try_parse_from(["cellblock", "run", "--kernel", "k", "--memory", "1G", "--cmdline", "-x"])
                .unwrap();
        let Command::Run(args) = cli.command else { unreachable!() };
        let config = args.vm_config().unwrap();
        assert_eq!((config.memory, config.cmdline.as_deref()), (1 << 30, Some("-x")));
    }
}
