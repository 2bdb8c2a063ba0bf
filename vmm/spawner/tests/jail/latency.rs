//! How long a start takes, and what each layer costs. Printed, not asserted.

use std::time::{Duration, Instant};

use cellblock_channel::socket;
use cellblock_jail::{Layer, LayerSet};
use cellblock_spawner::protocol::Program;

use crate::machine::{Prober, Vm, default_layers, is_root};

const ROUNDS: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) fn report(prober: &Prober) {
    let layers = default_layers();
    println!("  spawner, start() in the front:      {}", figures(rounds(|| spawner(prober, layers).0)));
    println!("  spawner, start() to Ready:          {}", figures(rounds(|| spawner(prober, layers).1)));
    println!("  worker, request to hello:           {}", figures(worker(prober, layers)));
    println!("  four workers at once, to last hello: {}", figures(four(prober, layers)));
    println!("  from nothing to the first hello:    {}", figures(rounds(|| whole(prober, layers))));
    if std::env::var_os("CELLBLOCK_LATENCY").is_none() {
        println!("  (CELLBLOCK_LATENCY=1 shows what each layer costs)");
        return;
    }
    for layer in Layer::ALL.into_iter().filter(|layer| *layer != Layer::Cgroup) {
        let without = layers.without(layer);
        if without.check(is_root()).is_ok() {
            println!("  without {:<13} worker: {}", layer.name(), figures(worker(prober, without)));
            println!("  {:<21} spawner: {}", "", figures(rounds(|| spawner(prober, without).1)));
        }
    }
}

/// With a pause, in which the kernel takes down the namespaces of the round before: otherwise that is measured, too.
fn rounds(mut one: impl FnMut() -> Duration) -> Vec<Duration> {
    let spaced = |_| {
        std::thread::sleep(PAUSE);
        one()
    };
    (0..ROUNDS).map(spaced).collect()
}

fn spawner(prober: &Prober, layers: LayerSet) -> (Duration, Duration) {
    let entries = vec![prober.entry()];
    let begin = Instant::now();
    let vm = Vm::launch(entries, layers);
    let cloned = begin.elapsed();
    vm.client().wait().unwrap();
    (cloned, begin.elapsed())
}

fn worker(prober: &Prober, layers: LayerSet) -> Vec<Duration> {
    let vm = Vm::start(vec![prober.entry()], layers);
    rounds(|| {
        let begin = Instant::now();
        let worker = vm.worker(0);
        let time = begin.elapsed();
        drop(worker);
        vm.end_of(0);
        time
    })
}

fn four(prober: &Prober, layers: LayerSet) -> Vec<Duration> {
    let vm = Vm::start((0..4).map(|_| prober.entry()).collect(), layers);
    rounds(|| {
        let begin = Instant::now();
        let controls: Vec<_> = (0..4).map(|number| request(&vm, number)).collect();
        for control in &controls {
            control.recv(&mut [0; 16], 0).unwrap();
        }
        let time = begin.elapsed();
        drop(controls);
        // Four starts and four ends.
        for _ in 0..8 {
            vm.event();
        }
        time
    })
}

fn request(vm: &Vm, number: u32) -> socket::Control {
    let (ours, theirs) = socket::pair().unwrap();
    vm.client().start(number, 0, Program::Own, theirs).unwrap();
    ours
}

/// The request is sent before the spawner is ready, as the supervisor will.
fn whole(prober: &Prober, layers: LayerSet) -> Duration {
    let entries = vec![prober.entry()];
    let begin = Instant::now();
    let vm = Vm::launch(entries, layers);
    request(&vm, 0).recv(&mut [0; 16], 0).unwrap();
    begin.elapsed()
}

fn figures(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    format!("p10 {} µs, p50 {} µs, p90 {} µs, p99 {} µs", at(10), at(50), at(90), at(99))
}
