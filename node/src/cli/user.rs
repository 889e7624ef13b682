//! `p2pvm user`.

use super::{
    Context,
    print::{self, report},
    user_args::User,
};
use p2pvm_api::{AddUser, Outcome, UserView};
use p2pvm_daemon::user_key;

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
    // The daemon says whether the name is good before there is a key.
    context.daemon().await?;
    let key = user_key::text(&user_key::create(&file)?);
    let added = add(context, AddUser { name, key }).await?;
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
