//! The grammar of `p2pvm user`.

use clap::Subcommand;

/// The example of `p2pvm user`.
pub const EXAMPLE: &str = "Example:\n  p2pvm user create anna";

/// `p2pvm user ...`
#[derive(Subcommand)]
pub enum User {
    /// Make a person's key, and print its public half
    #[command(
        after_help = "A user is a key of a person, apart from the machines' keys. Without one, \
            commands ask as the machine at which they are\ntyped, which is enough for one person. \
            Root's key is in the state directory, that of others in ~/.config/p2pvm/user.key;\n\
            P2PVM_USER_KEY names another file. Only root may make a key; it makes one for another \
            account into such a file.\n\nExample:\n  p2pvm user create anna"
    )]
    Create {
        /// What the user is called here
        name: String,
    },
    /// Give another user's public key a name here
    #[command(after_help = "Example:\n  p2pvm user add bert \
            aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")]
    Add {
        /// What the user is called here
        name: String,
        /// The public key that the user's own 'p2pvm user create' printed
        key: String,
        /// The number of the user's account on this machine ('id -u NAME'): in the group p2pvm it
        /// may manage the VMs that are for the user
        #[arg(long, value_name = "UID")]
        uid: Option<u32>,
    },
    /// List the users that are known here
    #[command(after_help = "Example:\n  p2pvm user list")]
    List,
}
