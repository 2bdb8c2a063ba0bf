//! `cellblock run`: a VM from its configuration to its end, again and again if its reboots are restarts.

use std::time::Instant;

use cellblock_config::{OnReboot, VmConfig};
use cellblock_jail::LayerSet;
use cellblock_supervisor::link::End;

use crate::cli::RunArgs;
use crate::front::control_socket::ControlSocket;
use crate::front::exit_table::ExitTable;
use crate::front::relay::Relay;
use crate::front::signals::Signals;
use crate::front::sink::Sink;
use crate::front::stream::Stream;
use crate::front::terminal::TerminalSize;
use crate::front::vsock::{Listener, Vsock};
use crate::launch::{self, Launched};
use crate::status::{Status, of_end};

/// Runs the VM; prints how it ended.
pub(crate) fn run(args: RunArgs) -> Status {
    let verbose = args.verbose;
    let (status, line) = match prepare(args) {
        Err((status, line)) => (status, line),
        Ok((config, layers)) => live(&config, layers, verbose).unwrap_or_else(|refusal| refusal),
    };
    note!("cellblock: {line}");
    status
}

type Refusal = (Status, String);

fn prepare(args: RunArgs) -> Result<(VmConfig, LayerSet), Refusal> {
    let usage = |line: String| (Status::Usage, line);
    let config = args.vm_config().map_err(|error| usage(chain(&error)))?;
    let layers = layers_without(&config.without_layers).map_err(usage)?;
    Ok((config, layers))
}

/// All layers of the sandbox but those of these names.
pub(crate) fn layers_without(names: &[String]) -> Result<LayerSet, String> {
    names.iter().try_fold(LayerSet::all(), |layers, name| {
        let layer = name.parse().map_err(|error| format!("without-layer is {name:?}: {error}"))?;
        Ok(layers.without(layer))
    })
}

fn live(config: &VmConfig, layers: LayerSet, verbose: u8) -> Result<Refusal, Refusal> {
    let refused = |line: String| (Status::Refused, line);
    let signals = Signals::take().map_err(|error| refused(format!("signals cannot be queued: {error}")))?;
    tell_what_is_lost(layers);
    let id = config.id.as_str();
    let mut control = control_socket(id).map_err(refused)?;
    let mut sinks = open_sinks(config).map_err(refused)?;
    if sinks.iter().any(|(_, sink)| sink.is_terminal()) {
        note!("cellblock: the keys are the guest's; Ctrl-A x ends the VM, Ctrl-A p presses its power button");
    }
    let listener = config.vsock.as_ref().map(|vsock| Listener::open(&vsock.path));
    let listener = listener.transpose().map_err(refused)?;
    loop {
        let started = Instant::now();
        let Launched {
            link,
            supervisor,
            spawner,
            authority,
            loader,
            pipes,
            vsock,
            passts,
            declared,
            uids,
            cgroup,
        } = launch::launch(config, layers, screen(&sinks)).map_err(refused)?;
        control.declare(declared);
        let streams = pipes.into_iter().zip(&mut sinks).enumerate();
        let streams =
            streams.map(|(number, (pipes, (_, sink)))| Stream::new(pipes, sink, number == CONSOLE)).collect();
        let relay = Relay {
            link,
            supervisor,
            spawner,
            authority,
            loader: loader.pid,
            streams,
            vsock: listener.as_ref().zip(vsock).map(|(listener, socket)| Vsock::new(listener, socket)),
            signals: &signals,
            control: &mut control,
            exits: ExitTable::new(config.exit_stats),
            stop_timeout: config.stop_timeout,
            verbose,
            started,
            id,
        };
        let (mut end, asked_to_stop) =
            relay.run().map_err(|error| (Status::Failure, format!("the front's loop failed: {error}")))?;
        drop((passts, uids, cgroup));
        if end == End::Reset && config.on_reboot == OnReboot::Restart {
            if !asked_to_stop {
                note!("cellblock: guest rebooted; starting it anew");
                continue;
            }
            // It rebooted instead of powering off: what was asked for is the end.
            end = End::Stopped;
        }
        sinks.iter_mut().for_each(|(_, sink)| sink.restore_terminal());
        for (what, sink) in sinks.iter().filter(|(_, sink)| sink.dropped() > 0) {
            note!("cellblock: {} bytes of {what} output were dropped at the file's limit", sink.dropped());
        }
        return Ok(of_end(&end));
    }
}

/// Which of the sinks is the console's.
const CONSOLE: usize = 1;

/// Where the VM's streams lead, with their names: the serial port, then the ports of the console.
fn open_sinks(config: &VmConfig) -> Result<Vec<(String, Sink)>, String> {
    let serial = ("serial".to_owned(), &config.serial.sink);
    let ports = config.consoles.iter().enumerate().map(|(number, port)| {
        let what = port.name.clone().unwrap_or_else(|| number.to_string());
        (format!("console port {what}"), &port.sink)
    });
    let streams = std::iter::once(serial).chain(ports);
    streams.map(|(what, sink)| Sink::open(sink, &what).map(|sink| (what, sink))).collect()
}

/// The size of the terminal that the console is on.
fn screen(sinks: &[(String, Sink)]) -> TerminalSize {
    sinks.get(CONSOLE).and_then(|(_, sink)| sink.terminal_size()).unwrap_or_default()
}

/// Tells the user what goes with a layer that was waived.
pub(crate) fn tell_what_is_lost(layers: LayerSet) {
    let privileged = rustix::process::geteuid().is_root();
    for layer in cellblock_jail::supervisor::lost(layers, privileged).iter() {
        note!(
            "cellblock: note: without the layer no-new-privs the supervisor and the loader run without {layer}, too"
        );
    }
}

/// The control socket of the VM named `id`.
pub(crate) fn control_socket(id: &str) -> Result<ControlSocket, String> {
    ControlSocket::bind(id).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => format!("a VM named {id:?} runs already; choose another --id"),
        _ => format!("the control socket of VM {id:?} cannot be made: {error}"),
    })
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        line.push_str(": ");
        line.push_str(&source.to_string());
        cause = source.source();
    }
    line
}
