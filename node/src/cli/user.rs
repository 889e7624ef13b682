//! `p2pvm user`.

use super::{
    Context,
    print::{self, report},
    user_args::User,
};
use p2pvm_api::{AddUser, Failure, Kind, Outcome, UserView};
use p2pvm_daemon::user_key;
use std::{fs, path::Path};

pub(crate) async fn run(context: &Context, user: User) -> Outcome<()> {
    match user {
        User::Create { name } => create(context, name).await,
        User::Add { name, key } => {
            let added = add(context, AddUser { name, key }).await?;
            report(context, &added, || {
                println!("{} is known here: user:{}", added.key, added.name)
            })
        }
        User::List => list(context).await,
    }
}

async fn create(context: &Context, name: String) -> Outcome<()> {
    let file = user_key::file(&context.layout);
    // No key is made where no daemon answers.
    let mut daemon = context.daemon().await?;
    let key = user_key::text(&user_key::create(&file)?);
    let added: Outcome<UserView> = daemon.post("/users", &AddUser { name, key }).await;
    let added = added.inspect_err(|failure| discard_refused(failure, &file))?;
    report(context, &added, || {
        println!("{}", added.key);
        eprintln!(
            "the key of user {} is in {}: keep it secret; others give it tokens with --to \
             user:KEY",
            added.name,
            file.display()
        );
    })
}

/// Removes the new key if the daemon refuses its name or its caller. After any other failure it
/// stays: the daemon may know it.
fn discard_refused(failure: &Failure, file: &Path) {
    if matches!(failure.kind, Kind::Refused | Kind::Usage)
        && let Err(error) = fs::remove_file(file)
    {
        eprintln!("cannot remove the unused key {}: {error}", file.display());
    }
}

async fn add(context: &Context, wanted: AddUser) -> Outcome<UserView> {
    context.daemon().await?.post("/users", &wanted).await
}

async fn list(context: &Context) -> Outcome<()> {
    let users: Vec<UserView> = context.daemon().await?.get("/users").await?;
    report(context, &users, || {
        let row = |user: &UserView| [user.name.clone(), user.key.clone()];
        let rows: Vec<[String; 2]> = users.iter().map(row).collect();
        print::table(["NAME", "KEY"], &rows);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_users_new_key_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, stays) in [
            (Kind::Refused, false),
            (Kind::Usage, false),
            (Kind::TimedOut, true),
            (Kind::Failed, true),
        ] {
            let file = dir.path().join(format!("{kind:?}"));
            user_key::create(&file).unwrap();
            discard_refused(&Failure::new(kind, "no"), &file);
            assert_eq!(file.exists(), stays, "{kind:?}");
        }
    }
}
