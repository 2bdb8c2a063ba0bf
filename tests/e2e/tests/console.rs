//! The virtio console, as Debian's own driver uses it (in the emulated host): bytes both ways, a named port, a terminal's size.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::path::Path;

use cellblock_e2e::{Ended, Lab, Line, Terminal, Vm};
use rustix::process::{Pid, Signal, kill_process};

const WAITS: &str = "CELLBLOCK-WAITS";

/// Waits until the guest takes commands; the emulator now and then corrupts a guest: then `start` is called once more.
fn with_commands(start: impl Fn() -> Vm) -> Vm {
    let mut vm = start();
    if let Err(broken) = vm.expect(WAITS) {
        eprintln!("RETRY: the first run broke: {broken:?}");
        drop(vm);
        vm = start();
        vm.expect(WAITS).unwrap();
    }
    vm
}

fn socket(path: &Path, name: &str) -> [String; 2] {
    ["--console".to_owned(), format!("socket={}{name}", path.display())]
}

#[test]
fn bytes_pass_by_the_console_and_by_a_named_port() {
    let Some(lab) = Lab::with_images("console") else { return };
    let (console_path, port_path) = (lab.folder().join("console"), lab.folder().join("port"));
    let plan = lab
        .linux("vmlinux", "load,commands,reboot")
        .with(socket(&console_path, ""))
        .with(socket(&port_path, ",name=org.cellblock.test"));
    let mut vm = with_commands(|| plan.start());
    let mut console = Line::connect(&console_path).unwrap();
    let mut port = Line::connect(&port_path).unwrap();

    vm.type_in("opens /dev/hvc0; exec 3<>/dev/hvc0; stty -F /dev/hvc0 raw -echo; echo out >&3\n").unwrap();
    vm.explain(console.expect("out")).unwrap();
    vm.type_in("tell READS; read -r line </dev/hvc0; tell \"GOT=$line\"\n").unwrap();
    vm.expect("CELLBLOCK-READS").unwrap();
    console.send("typed on the console\n").unwrap();
    assert_eq!(vm.expect_line("GOT=").unwrap(), "typed on the console");

    // By its name, as a guest's agent finds it.
    vm.type_in(
        "name=$(grep -lx org.cellblock.test /sys/class/virtio-ports/*/name); port=/dev/$(basename ${name%/name}); \
         ls /sys/class/virtio-ports; tell \"PORT=$port\"\n",
    )
    .unwrap();
    assert!(vm.expect_line("PORT=").unwrap().ends_with("p1"));
    // Much, to the host: more than all buffers on the way hold.
    vm.type_in(
        "seq 1 40000 >/tmp/numbers; tell BYTES=$(wc -c </tmp/numbers); cat /tmp/numbers >$port; tell SENT\n",
    )
    .unwrap();
    let bytes: usize = vm.expect_line("BYTES=").unwrap().parse().unwrap();
    let numbers = String::from_utf8(vm.explain(port.expect_bytes(bytes)).unwrap()).unwrap();
    assert!(numbers.lines().enumerate().all(|(at, line)| line == (at + 1).to_string()), "out of order");
    vm.expect("CELLBLOCK-SENT").unwrap();
    // And back.
    vm.type_in("tell TAKES; head -c $(wc -c </tmp/numbers) $port | cmp - /tmp/numbers && tell SAME\n")
        .unwrap();
    vm.expect("CELLBLOCK-TAKES").unwrap();
    port.send(&numbers).unwrap();
    vm.expect("CELLBLOCK-SAME").unwrap();
    assert_eq!(console.text().replace(['\r', '\n'], ""), "out", "the port's bytes are not the console's");

    // What its worker did is told. One that is killed is replaced: what is open stays so, and no byte is lost.
    vm.type_in("exec 4<>$port; tell OPENED\n").unwrap();
    vm.expect("CELLBLOCK-OPENED").unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    let row = tree.processes.iter().find(|row| row.process == "console").unwrap();
    let enough = Some(bytes as u64);
    assert!(
        row.bytes_to_guest >= enough && row.bytes_from_guest >= enough && row.requests > Some(10),
        "{row:?}"
    );
    kill_process(Pid::from_raw(row.pid).unwrap(), Signal::KILL).unwrap();
    port.send("after its end\n").unwrap();
    vm.type_in("echo again >&3; read -r line <&4; tell \"NEXT=$line\"; echo back >&4\n").unwrap();
    vm.explain(console.expect("again")).unwrap();
    assert_eq!(vm.expect_line("NEXT=").unwrap(), "after its end");
    vm.explain(port.expect("back")).unwrap();
    assert_ne!(vm.processes(plan.id()).unwrap().pid("console").unwrap(), row.pid);
    vm.type_in("quit\n").unwrap();
    vm.wait().unwrap().assert(0, "guest rebooted");
}

#[test]
fn a_sink_that_takes_nothing_holds_its_port_alone() {
    let Some(lab) = Lab::with_images("held") else { return };
    let (console_path, port_path) = (lab.folder().join("console"), lab.folder().join("port"));
    let plan = lab
        .linux("vmlinux", "load,commands,reboot")
        .with(socket(&console_path, ""))
        .with(socket(&port_path, ",name=slow"));
    let mut vm = with_commands(|| plan.start());
    let mut console = Line::connect(&console_path).unwrap();
    // Connected, and not read. The guest's buffers hold 128 KiB of such pieces, pipe and socket less than 400.
    let slow = std::os::unix::net::UnixStream::connect(&port_path).unwrap();
    vm.type_in("opens '/dev/vport*p1'; port=$(echo /dev/vport*p1); seq 1 200000 >/tmp/numbers\n").unwrap();
    vm.type_in(
        "(dd if=/tmp/numbers of=$port bs=1k; : >/tmp/sent) & sleep 1; [ -e /tmp/sent ] || tell HELD\n",
    )
    .unwrap();
    vm.expect("CELLBLOCK-HELD").unwrap();
    vm.type_in("stty -F /dev/hvc0 raw -echo; echo passes >/dev/hvc0; tell BYTES=$(wc -c </tmp/numbers)\n")
        .unwrap();
    vm.explain(console.expect("passes")).unwrap();
    let bytes: usize = vm.expect_line("BYTES=").unwrap().parse().unwrap();
    let mut reader = Line::new(slow.try_clone().unwrap(), slow);
    let numbers = String::from_utf8(vm.explain(reader.expect_bytes(bytes)).unwrap()).unwrap();
    assert!(numbers.lines().enumerate().all(|(at, line)| line == (at + 1).to_string()), "nothing is dropped");
    vm.type_in("wait; tell SENT\n").unwrap();
    vm.expect("CELLBLOCK-SENT").unwrap();
    vm.type_in("quit\n").unwrap();
    vm.wait().unwrap().assert(0, "guest rebooted");
}

/// Has the guest look at its terminal's size until it is `wanted`, `rows columns`; it tells what it finds meanwhile.
fn size_becomes(serial: &mut Line, wanted: &str) {
    let look = format!(
        "last=; until size=$(stty -F /dev/hvc0 size 2>&1); [ \"$size\" = '{wanted}' ]; do \
         [ \"$size\" = \"$last\" ] || tell \"FOUND=$size\"; last=$size; sleep 0.1; done; tell \"SIZE=$size\"\n"
    );
    serial.send(&look).unwrap();
    assert_eq!(serial.expect_line("CELLBLOCK-SIZE=").unwrap(), wanted);
}

/// On a terminal of 100 columns and 40 rows, which then has 77 and 33: `more` says what other ports there are.
fn the_size_is_the_terminals(name: &str, more: &[&str]) {
    let Some(lab) = Lab::with_images(name) else { return };
    let serial_path = lab.folder().join("serial");
    let terminal = Terminal::open(100, 40).unwrap();
    let plan = lab
        .linux("vmlinux", "load,commands,reboot")
        .with(["--serial".to_owned(), format!("socket={}", serial_path.display())])
        .with(["--console", "stdio"])
        .with(more.iter().copied());
    let start = || {
        let vm = plan.start_on(&terminal);
        let mut serial = Line::connect(&serial_path).unwrap();
        serial.expect(WAITS).map(|()| (vm, serial))
    };
    let (mut vm, mut serial) = start()
        .or_else(|broken| {
            eprintln!("RETRY: the first run broke: {broken:?}");
            start()
        })
        .unwrap();
    // Linux gives a terminal that is opened its size a moment later: it has to stay open.
    serial.send("opens /dev/hvc0; exec 3<>/dev/hvc0\n").unwrap();
    size_becomes(&mut serial, "40 100");
    terminal.resize(77, 33).unwrap();
    vm.signal(Signal::WINCH).unwrap();
    size_becomes(&mut serial, "33 77");
    serial.send("echo shown >/dev/hvc0; read -r line </dev/hvc0; tell \"GOT=$line\"\n").unwrap();
    vm.expect("shown").unwrap();
    vm.type_in("keys\r").unwrap();
    assert_eq!(serial.expect_line("GOT=").unwrap(), "keys");
    serial.send("quit\n").unwrap();
    let ended: Ended = vm.wait().unwrap();
    ended.assert(0, "guest rebooted");
}

/// By the configuration space and its interrupt.
#[test]
fn a_lone_console_has_its_terminals_size() {
    the_size_is_the_terminals("size", &[]);
}

/// By a control message.
#[test]
fn a_console_among_ports_has_its_terminals_size() {
    the_size_is_the_terminals("sizes", &["--console", "null,name=other"]);
}

#[test]
fn two_streams_cannot_have_one_terminal() {
    let Some(lab) = Lab::with_guests("terminals") else { return };
    let twice = lab.guest("poweroff").with(["--console", "stdio", "--serial", "stdio"]);
    twice.start().wait().unwrap().assert(2, "stdio for one of serial port and console ports only");
    let twice = lab.guest("poweroff").with(["--console", "stdio", "--console", "stdio,name=b"]);
    twice.start().wait().unwrap().assert(2, "stdio for one of");
    let one = lab.guest("poweroff").with(["--console", "null", "--console", "null,name=a"]);
    one.start().wait().unwrap().assert(0, "guest powered off");
    let long = lab.guest("poweroff").with((0..8).flat_map(|_| ["--console", "null"]));
    long.start().wait().unwrap().assert(2, "at most 7 ports");
}
