//! Errands: work that a key starts and that takes a moment, such as the log, an invite, joining,
//! stopping the machine. Each reports back as [`News`].
//!
//! Joining runs the command line's own `join` as a process. So it works in the same way as at a
//! prompt, and the screen shows the sentence that it ends with.

use super::{News, feed};
use p2pvm_api::Outcome;
use p2pvm_console::{Action, Power};
use p2pvm_daemon::{layout::Layout, membership, service};
use std::{process::Stdio, sync::Arc};
use tokio::{io::AsyncWriteExt, process::Command, sync::mpsc};

/// How many lines of the log the screen keeps.
const LOG_LINES: usize = 500;

/// The context of the errands.
pub struct Errand {
    /// This node's state.
    pub layout: Layout,
    /// Where the outcome goes.
    pub tell: mpsc::Sender<News>,
}

impl Errand {
    /// Runs the errand in a task of its own.
    pub fn go(self: Arc<Self>, action: Action) {
        tokio::spawn(async move {
            let news = match action {
                Action::Logs => News::Logs(service::log_tail(&self.layout, LOG_LINES).await),
                Action::Invite => News::Invite(feed::invite(&self.layout).await),
                Action::Join { invite, leave } => self.join(&invite, leave).await,
                Action::Power(power) => match stop_machine(power).await {
                    Ok(()) => News::Notice("the machine is stopping".to_owned()),
                    Err(why) => News::Notice(why),
                },
                // The loop does these itself.
                Action::Quit | Action::Shell => return,
            };
            // Nobody listens if the screen was left meanwhile.
            let _ = self.tell.send(news).await;
        });
    }

    async fn join(&self, invite: &str, leave: bool) -> News {
        let network = match membership::network_of_invite(invite) {
            Ok(network) => network,
            Err(refused) => return News::Joined(Err(refused.message)),
        };
        if self.layout.is_member() {
            match self.may_leave().await {
                Err(why) => return News::Joined(Err(why)),
                Ok(()) if !leave => return News::AskLeave(network),
                Ok(()) => {
                    if let Err(why) = self.p2pvm(&["leave"], "").await {
                        return News::Joined(Err(why));
                    }
                }
            }
        }
        News::Joined(self.p2pvm(&["join", "-"], invite).await)
    }

    /// A key leaves only a network that this machine founded and in which it is alone.
    async fn may_leave(&self) -> Result<(), String> {
        let mut model = p2pvm_console::Model::new(
            p2pvm_console::Theme::PLAIN,
            p2pvm_console::Options::default(),
        );
        feed::look_at_all(&self.layout, &mut model).await;
        if model.is_alone() {
            return Ok(());
        }
        Err(
            "this machine is a member of a network already: 'p2pvm leave' in a shell leaves it"
                .to_owned(),
        )
    }

    /// Runs a p2pvm command; returns the last line of its output.
    async fn p2pvm(&self, words: &[&str], input: &str) -> Result<String, String> {
        let run = async {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("--dir").arg(self.layout.dir()).args(words);
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let output = run
            .await
            .map_err(|e| format!("p2pvm {}: {}", words.join(" "), p2pvm_host::chain(&e)))?;
        let last = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let line = text
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or_default();
            line.trim().trim_start_matches("p2pvm: ").to_owned()
        };
        if output.status.success() {
            Ok(last(&output.stdout))
        } else {
            Err(last(&output.stderr))
        }
    }
}

async fn stop_machine(power: Power) -> Result<(), String> {
    let verb = match power {
        Power::Reboot => "reboot",
        Power::Off => "poweroff",
    };
    let done: Outcome<()> = service::systemctl(&[verb]).await;
    done.map_err(|failure| failure.message)
}
