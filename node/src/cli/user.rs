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
        User::Add { name, key, uid } => {
            let added = add(context, AddUser { name, key, uid }).await?;
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
    let added: Outcome<UserView> = daemon
        .post(
            "/users",
            &AddUser {
                name,
                key,
                uid: None,
            },
        )
        .await;
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
        let uid = |user: &UserView| {
            user.uid
                .map_or_else(|| "-".to_owned(), |uid| uid.to_string())
        };
        let row = |user: &UserView| [user.name.clone(), user.key.clone(), uid(user)];
        let rows: Vec<[String; 3]> = users.iter().map(row).collect();
        print::table(["NAME", "KEY", "ACCOUNT"], &rows);
    })
}

/// A user as every member understands it: names are this member's.
pub(crate) async fn known(context: &Context, text: String) -> Outcome<String> {
    let Some(name) = text.strip_prefix("user:") else {
        return Err(Failure::usage(format!(
            "'{text}' is no user: write user:NAME or user:KEY"
        )));
    };
    let users: Vec<UserView> = context.daemon().await?.get("/users").await?;
    let found = users.iter().find(|user| user.name == name);
    Ok(found.map_or(text.clone(), |user| format!("user:{}", user.key)))
}

/// The key of the person that types the command.
pub(crate) fn own_key(context: &Context) -> Outcome<String> {
    let file = user_key::file(&context.layout);
    let key = user_key::load(&file)?.ok_or_else(|| {
        Failure::not_found(format!(
            "{} has no user's key: make one with 'p2pvm user create'",
            file.display()
        ))
    })?;
    Ok(user_key::text(&key))
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
