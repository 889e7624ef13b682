//! `p2pvm down` and `p2pvm leave`: they end the daemon and undo its changes to this machine;
//! `leave` also forgets the membership. With `--force` they also end a daemon that does not answer.

use super::{
    Context,
    print::or_dash,
    silent::{self, ConnectFailure},
};
use p2pvm_api::{Failure, Force, Outcome, client::Client};
use p2pvm_daemon::{OrFailure, changes, layout::Layout, lock, membership};
use p2pvm_vm_manager::qemu;
use std::{
    fs,
    time::{Duration, Instant},
};

/// How long a killed daemon may hold its lock until the kernel has cleaned up after it.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// How long a daemon may take to end after it has answered that it ends.
const ENDING_LIMIT: Duration = Duration::from_secs(15);
/// How long telling the members and releasing the address may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(30);

pub(crate) async fn down(context: &Context, force: bool) -> Outcome<()> {
    let layout = &context.layout;
    let pid = lock::holder(layout);
    let asked = match silent::connect(layout).await {
        Ok(mut client) => silent::at_once(layout, client.post::<()>("/shutdown", &())).await,
        Err(missing) => Err(missing.into()),
    };
    if let Err(failure) = asked {
        // A daemon that is being killed does not answer, and is gone in a moment.
        let began = Instant::now();
        while lock::holder(layout).is_some() && began.elapsed() <= DYING_LIMIT && !force {
            tokio::time::sleep(LOOK).await;
        }
        let Some(pid) = lock::holder(layout) else {
            // A daemon that was killed may have left changes on this machine.
            changes::undo(layout);
            println!("no daemon was running");
            return Ok(());
        };
        if !force {
            return Err(failure);
        }
        end(layout).await?;
        println!(
            "ended: the daemon (process {pid}) did not answer; its changes to this machine are \
                undone"
        );
        return Ok(());
    }
    // The daemon releases the lock a moment before its ports and interface, or longer before if it
    // waits for a disk.
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

/// Waits until a daemon that has been told to end is gone.
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

/// Ends the daemon and undoes its changes to this machine.
async fn end(layout: &Layout) -> Outcome<()> {
    silent::end(layout).await?;
    changes::undo(layout);
    for socket in [layout.socket(), layout.dashboard_socket()] {
        // The socket may be gone already.
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

pub(crate) async fn leave(context: &Context, force: bool) -> Outcome<()> {
    let layout = &context.layout;
    let pid = lock::holder(layout);
    let untold = match silent::connect(layout).await {
        Ok(mut client) => farewell(layout, &mut client, force).await?,
        Err(ConnectFailure::NotRunning(_)) if !layout.is_member() => {
            println!("this machine is not a member of a network");
            return Ok(());
        }
        Err(ConnectFailure::NotRunning(_)) if !force => {
            return Err(Failure::refused(
                "no daemon is running, so the network cannot be told; start it with 'p2pvm up \
                    --detach', or leave without telling with --force",
            ));
        }
        Err(ConnectFailure::NotRunning(_)) => Some("no daemon was running".to_owned()),
        Err(ConnectFailure::Silent(failure)) if !force => {
            return Err(Failure::timed_out(format!(
                "{}. Or leave without telling the network: 'p2pvm leave --force' ends the daemon \
                    and this host's VMs",
                failure.message
            )));
        }
        Err(ConnectFailure::Silent(_)) => Some(format!(
            "the daemon (process {}) did not answer and was ended",
            or_dash(pid)
        )),
        Err(ConnectFailure::Closed(failure)) => return Err(failure),
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
    // Guests run on without a daemon, and without their definitions no command could end them.
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

/// Lets the daemon tell the network. If `--force` makes up for a failure, returns why it failed.
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
