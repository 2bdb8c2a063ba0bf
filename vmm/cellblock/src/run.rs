//! `cellblock run`: a VM from its configuration to its end, again and again if its reboots are restarts.

use std::time::Instant;

use cellblock_config::{OnReboot, VmConfig};
use cellblock_jail::LayerSet;
use cellblock_supervisor::link::End;

use crate::cli::RunArgs;
use crate::front::control_socket::ControlSocket;
use crate::front::relay::Relay;
use crate::front::signals::Signals;
use crate::front::sink::Sink;
use crate::front::stream::Stream;
use crate::launch::{self, Launched};
use crate::status::{Status, of_end};

/// Runs the VM; prints how it ended.
pub(crate) fn run(args: RunArgs) -> Status {
    let verbose = args.verbose;
    let (status, line) = match prepare(args) {
        Err((status, line)) => (status, line),
        Ok((config, layers)) => live(&config, layers, verbose).unwrap_or_else(|refusal| refusal),
    };
    eprintln!("cellblock: {line}");
    status
}

type Refusal = (Status, String);

fn prepare(args: RunArgs) -> Result<(VmConfig, LayerSet), Refusal> {
    let usage = |line: String| (Status::Usage, line);
    let config = args.vm_config().map_err(|error| usage(chain(&error)))?;
    let mut layers = LayerSet::all();
    for name in &config.without_layers {
        let layer = name.parse().map_err(|error| usage(format!("without-layer is {name:?}: {error}")))?;
        layers = layers.without(layer);
    }
    Ok((config, layers))
}

fn live(config: &VmConfig, layers: LayerSet, verbose: u8) -> Result<Refusal, Refusal> {
    let refused = |line: String| (Status::Refused, line);
    let signals = Signals::take().map_err(|error| refused(format!("signals cannot be queued: {error}")))?;
    let privileged = rustix::process::geteuid().is_root();
    for layer in cellblock_jail::supervisor::lost(layers, privileged).iter() {
        eprintln!(
            "cellblock: note: without the layer no-new-privs the supervisor and the loader run without {layer}, too"
        );
    }
    let id = config.id.as_str();
    let mut control = ControlSocket::bind(id).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            refused(format!("a VM named {id:?} runs already; choose another --id"))
        }
        _ => refused(format!("the control socket of VM {id:?} cannot be made: {error}")),
    })?;
    // In the order of the pipes.
    let mut sinks = vec![Sink::open(&config.serial.sink).map_err(refused)?];
    if sinks.iter().any(Sink::is_terminal) {
        eprintln!(
            "cellblock: the keys are the guest's; Ctrl-A x ends the VM, Ctrl-A p presses its power button"
        );
    }
    loop {
        let started = Instant::now();
        let Launched { link, supervisor, spawner, loader, pipes, uids, cgroup } =
            launch::launch(config, layers).map_err(refused)?;
        let streams =
            pipes.into_iter().zip(&mut sinks).map(|(pipes, sink)| Stream::new(pipes, sink)).collect();
        let relay = Relay {
            link,
            supervisor,
            spawner,
            loader: loader.pid,
            streams,
            signals: &signals,
            control: &mut control,
            stop_timeout: config.stop_timeout,
            verbose,
            started,
            id,
        };
        let (mut end, asked_to_stop) =
            relay.run().map_err(|error| (Status::Failure, format!("the front's loop failed: {error}")))?;
        drop((uids, cgroup));
        if end == End::Reset && config.on_reboot == OnReboot::Restart {
            if !asked_to_stop {
                eprintln!("cellblock: guest rebooted; starting it anew");
                continue;
            }
            // It rebooted instead of powering off: what was asked for is the end.
            end = End::Stopped;
        }
        sinks.iter_mut().for_each(Sink::restore_terminal);
        let dropped: u64 = sinks.iter().map(Sink::dropped).sum();
        if dropped > 0 {
            eprintln!("cellblock: {dropped} bytes of serial output were dropped at the file's limit");
        }
        return Ok(of_end(&end));
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        line.push_str(": ");
        line.push_str(&source.to_string());
        cause = source.source();
    }
    line
}
