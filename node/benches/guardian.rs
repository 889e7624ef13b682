//! How late the guest guardian freezes: a process of two threads that are never idle is frozen 200
//! times beside five others that compute, each second time after a renewal. Milliseconds after the
//! deadline; negative where the process had no processor at the deadline. As root:
//! `cargo bench --profile dev -p p2pvm --bench guardian -- [trials] [others]`.

#[path = "../tests/guarded/victim.rs"]
mod victim;

use p2pvm_overlay::{Epoch, VmId};
use p2pvm_vm_manager::guardian::{Guardian, HostGuardian, boot_time};
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};
use victim::Victim;

const VM: VmId = VmId([7; 32]);
/// Makes this program one of the others that compute.
const SPIN: &str = "P2PVM_BENCH_SPIN";
/// How long the frozen process is left alone before its last stamp is read.
const SETTLE: Duration = Duration::from_millis(60);

/// Other programs that compute, ended with their owner.
struct Others(Vec<Child>);

impl Others {
    fn start(count: usize) -> Self {
        let program = std::env::current_exe().expect("this program has a name");
        let one = || {
            Command::new(&program)
                .env(SPIN, "1")
                .stdout(Stdio::null())
                .spawn()
                .expect("this program starts again")
        };
        Self((0..count).map(|_| one()).collect())
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn show(what: &str, mut seen: Vec<f64>) {
    seen.sort_by(f64::total_cmp);
    let at = |share: f64| seen[((seen.len() - 1) as f64 * share).round() as usize];
    println!(
        "| {what:<24} | {:>9.3} | {:>9.3} | {:>9.3} |",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

#[tokio::main]
async fn measure(trials: u32, others: usize) {
    let dir = tempfile::tempdir().expect("a directory for the guardian");
    let words = vec![
        env!("CARGO_BIN_EXE_p2pvm").into(),
        "--dir".into(),
        dir.path().as_os_str().to_owned(),
        "guest-guardian".into(),
    ];
    let guardian = HostGuardian::new(dir.path(), words);
    let mut frozen = guardian.frozen();
    let victim = Victim::start(&[]);
    let _others = Others::start(others);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (mut woke, mut done, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut ran_on = 0;
    for trial in 0..trials {
        // Spread, so that no timer of the kernel fits all.
        let spread = Duration::from_micros(u64::from(trial) * 7919 % 40_000);
        let mut deadline = boot_time() + Duration::from_millis(80) + spread;
        let epoch = Epoch(1);
        match trial {
            0 => guardian.arm(VM, epoch, deadline, &victim.process()).await,
            _ => guardian.thaw(VM, epoch, deadline).await,
        }
        .expect("the guardian takes it");
        if trial % 2 == 1 {
            deadline += Duration::from_millis(10);
            let renewed = guardian.renew(VM, epoch, deadline).await;
            renewed.expect("the guardian renews it");
        }
        let event = frozen.recv().await.expect("the guardian reports");
        tokio::time::sleep(SETTLE).await;
        let stamp = victim.last();
        ran_on += usize::from(!victim.is_still_for(Duration::from_millis(15)));
        woke.push(milliseconds(event.woke_late));
        done.push(milliseconds(event.done));
        last.push(milliseconds(stamp) - milliseconds(deadline));
    }
    println!("{trials} freezes beside {others} programs that compute, ms after the deadline");
    println!("|                          |       p50 |       p99 |       max |");
    println!("|---|---|---|---|");
    show("guardian awake", woke);
    show("freeze done", done);
    show("last instruction", last);
    println!("ran on after the freeze: {ran_on} of {trials}");
}

fn main() {
    if std::env::var_os(SPIN).is_some() {
        loop {
            std::hint::spin_loop();
        }
    }
    victim::be_one_if_asked();
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let trials = numbers.next().unwrap_or(200);
    let others = numbers.next().unwrap_or(5);
    measure(trials as u32, others);
}
