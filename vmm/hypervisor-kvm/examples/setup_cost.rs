//! Prints what each set-up step costs on this host, in µs: `cargo run --release -p cellblock-hypervisor-kvm --example setup_cost`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use cellblock_hypervisor_kvm::{Kvm, probe};
    let kvm = Kvm::open(std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")?.into())?;
    for cap in probe::capabilities(&kvm) {
        println!("{cap:?}");
    }
    for _ in 0..3 {
        let t = std::time::Instant::now();
        let s = probe::kernel_code_speed(&kvm)?;
        println!("{s:?} {} per s, probe {:?}", s.per_second(), t.elapsed());
    }
    Ok(())
}
