//! The grammar of the appliance's commands: `p2pvm iso`, `p2pvm install` and the hidden `p2pvm
//! appliance`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `p2pvm iso ...`
#[derive(Subcommand)]
pub enum Iso {
    /// Write an invite into an appliance ISO, so that machines booted from it join that network
    #[command(
        after_help = "The command copies the ISO and changes one place in the copy; it rebuilds \
            nothing and needs no root.\n\nExamples:\n  p2pvm invite --uses 5 > invite.txt\n  p2pvm \
            iso customize p2pvm.iso --join invite.txt -o lab.iso\n  p2pvm iso customize lab.iso \
            --clear -o plain.iso"
    )]
    Customize(Customize),
}

/// Arguments of `iso customize`.
#[derive(Args)]
pub struct Customize {
    /// An ISO of the appliance
    pub input: PathBuf,
    /// The invite, a file with one, or - for standard input
    #[arg(long, value_name = "INVITE", required_unless_present = "clear")]
    pub join: Option<String>,
    /// Remove the invite
    #[arg(long, conflicts_with = "join")]
    pub clear: bool,
    /// The customized ISO; an existing file is replaced
    #[arg(long, short, value_name = "ISO")]
    pub output: PathBuf,
}

/// Arguments of `install`.
#[derive(Args)]
pub struct Install {
    /// The disk, such as /dev/sda
    pub disk: PathBuf,
    /// The ISO to install from; by default the medium that this machine was booted from
    #[arg(long, value_name = "ISO")]
    pub from: Option<PathBuf>,
    /// Install even if the disk has data, which is lost
    #[arg(long)]
    pub force: bool,
    /// Do not ask for the disk's name again
    #[arg(long)]
    pub yes: bool,
}

/// `p2pvm appliance ...`
#[derive(Subcommand)]
pub enum Appliance {
    /// Mount the state and become a member; the first-boot unit runs this
    Prepare,
    /// Say which network the invites in the places lead to
    FindNetwork(FindNetwork),
    /// After a rejected invite: say why, read another invite from the terminal and try again
    Ask,
    /// Write the reserved file for an invite, which the ISO's builder puts into the ISO
    Reserve,
}

/// Arguments of `appliance find-network`.
#[derive(Args)]
pub struct FindNetwork {
    /// The kernel's command line
    #[arg(long, default_value = "/proc/cmdline")]
    pub cmdline: PathBuf,
    /// A mounted volume: its label and its root; may be repeated, in order
    #[arg(long = "volume", value_name = "LABEL=DIR", value_parser = parse_volume)]
    pub volumes: Vec<(String, PathBuf)>,
    /// The reserved file for an invite in the medium
    #[arg(long, default_value = "/run/p2pvm/medium/p2pvm/invite")]
    pub room: PathBuf,
    /// The SMBIOS serial
    #[arg(long, default_value = "/sys/class/dmi/id/product_serial")]
    pub serial: PathBuf,
}

fn parse_volume(text: &str) -> Result<(String, PathBuf), String> {
    let (label, dir) = text.split_once('=').ok_or("write it as LABEL=DIR")?;
    Ok((label.to_owned(), dir.into()))
}
