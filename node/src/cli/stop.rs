//! `p2pvm down` and `p2pvm leave`: the daemon ends, what it changed on this machine is undone, and
//! for `leave` the membership is forgotten. With `--force` also where the daemon does not answer.

use super::{
    Context,
    print::or_dash,
    silent::{self, Missing},
};
use p2pvm_api::{Failure, Force, Outcome, client::Client};
use p2pvm_daemon::{OrFailure, changes, layout::Layout, lock, membership};
use p2pvm_vm_manager::qemu;
use std::{
    fs,
    time::{Duration, Instant},
};

/// A daemon that was killed holds its lock until the kernel has taken it apart.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// A daemon that has said that it ends is gone within this.
const ENDING_LIMIT: Duration = Duration::from_secs(15);
/// Members are told, and the address is given back, within this.
const FAREWELL_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(30);

pub(super) async fn down(context: &Context, force: bool) -> Outcome<()> {
    let layout = &context.layout;
    let pid = lock::holder(layout);
    let asked = match silent::connect(layout).await {
        Ok(mut client) => silent::at_once(layout, client.post::<()>("/shutdown", &())).await,
        Err(missing) => Err(missing.into()),
    };
    if let Err(failure) = asked {
        // One that is just being killed does not answer, and is gone in a moment.
        let began = Instant::now();
        while lock::holder(layout).is_some() && began.elapsed() <= DYING_LIMIT && !force {
            tokio::time::sleep(LOOK).await;
        }
        let Some(pid) = lock::holder(layout) else {
            // It may have left this machine changed.
            changes::undo(layout);
            println!("no daemon was running");
            return Ok(());
        };
        if !force {
            return Err(failure);
        }
        end(layout).await?;
        println!(
            "ended: the daemon (process {pid}) did not answer; what it had changed on this \
                machine is undone"
        );
        return Ok(());
    }
    // It gives the lock back a moment before its ports and interface, or longer before where a disk
    // holds it up.
    if !is_over(layout, pid).await {
        if !force {
            let said = format!(
                "the daemon (process {}) is still stopping; 'p2pvm down --force' ends it",
                or_dash(pid)
            );
            return Err(Failure::timed_out(said));
        }
        end(layout).await?;
    }
    println!("stopped");
    Ok(())
}

/// Waits for a daemon that has been told to end.
async fn is_over(layout: &Layout, pid: Option<u32>) -> bool {
    let began = Instant::now();
    while lock::holder(layout).is_some() || pid.is_some_and(lock::lives) {
        if began.elapsed() > ENDING_LIMIT {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    true
}

/// Ends the daemon and puts this machine back in order.
async fn end(layout: &Layout) -> Outcome<()> {
    silent::end(layout).await?;
    changes::undo(layout);
    for socket in [layout.socket(), layout.dashboard_socket()] {
        // One that is gone already is as good.
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

pub(super) async fn leave(context: &Context, force: bool) -> Outcome<()> {
    let layout = &context.layout;
    let pid = lock::holder(layout);
    let untold = match silent::connect(layout).await {
        Ok(mut client) => farewell(layout, &mut client, force).await?,
        Err(Missing::NotRunning(_)) if !layout.is_member() => {
            println!("this machine is no member of a network");
            return Ok(());
        }
        Err(Missing::NotRunning(_)) if !force => {
            return Err(Failure::refused(
                "no daemon is running, so the network cannot be told; start it with 'p2pvm up \
                    --detach', or leave without telling with --force",
            ));
        }
        Err(Missing::NotRunning(_)) => Some("no daemon was running".to_owned()),
        Err(Missing::Silent(failure)) if !force => {
            return Err(Failure::timed_out(format!(
                "{}. Or leave without telling the network: 'p2pvm leave --force' ends the daemon \
                    and this host's VMs",
                failure.message
            )));
        }
        Err(Missing::Silent(_)) => Some(format!(
            "the daemon (process {}) did not answer and was ended",
            or_dash(pid)
        )),
        Err(Missing::Closed(failure)) => return Err(failure),
    };
    if untold.is_some() || !is_over(layout, pid).await {
        if !force {
            return Err(Failure::timed_out(format!(
                "the network is told, but the daemon (process {}) is still stopping: run 'p2pvm \
                    leave --force' to end it and forget the network",
                or_dash(pid)
            )));
        }
        silent::end(layout).await?;
    }
    // Without a daemon guests run on, and nobody could end them when their definitions are gone.
    let ended = qemu::end_guests(layout.dir()).await.or_failure()?;
    end(layout).await?;
    membership::forget(layout)?;
    if let Some(why) = untold {
        eprintln!(
            "note: {why}, so the network was not told: others list this machine as gone after a \
                while"
        );
    }
    if !ended.is_empty() {
        eprintln!("note: ended the VMs {}", ended.join(", "));
    }
    println!("left the network");
    Ok(())
}

/// Lets the daemon tell the network; why that was not told, if it was not and that is good enough.
async fn farewell(layout: &Layout, client: &mut Client, force: bool) -> Outcome<Option<String>> {
    match tokio::time::timeout(
        FAREWELL_LIMIT,
        client.post::<()>("/leave", &Force { force }),
    )
    .await
    {
        Ok(told) => told.map(|()| None),
        Err(_) if force => Ok(Some(format!(
            "the daemon had not left within {} s and was ended",
            FAREWELL_LIMIT.as_secs()
        ))),
        Err(_) => Err(Failure::timed_out(format!(
            "the daemon (process {}) has not left within {} s: 'p2pvm leave --force' ends it and \
                forgets the network",
            or_dash(lock::holder(layout)),
            FAREWELL_LIMIT.as_secs()
        ))),
    }
}
