//! `p2pvm token`.

use super::{
    Context,
    print::{self, report},
    read_text,
    token_args::{Token, TokenCreate, TokenPass},
};
use hyper::Method;
use p2pvm_api::{
    CreateToken, Failure, Outcome, PassToken, RevokeToken, TokenRemoved, TokenRevoked, TokenText,
    TokenView,
};

/// The most bytes read of a file with a token: one has a few thousand.
const MAX_READ_BYTES: u64 = 64 << 10;

pub(crate) async fn run(context: &Context, token: Token) -> Outcome<()> {
    match token {
        Token::Create(a) => create(context, a).await,
        Token::Attenuate(a) => attenuate(context, a).await,
        Token::Show { token } => show(context, "/tokens/show", &token).await,
        Token::Add { token } => show(context, "/tokens/add", &token).await,
        Token::List => list(context).await,
        Token::Revoke { token } => revoke(context, &token).await,
        Token::Remove { id } => remove(context, &id).await,
    }
}

async fn create(context: &Context, a: TokenCreate) -> Outcome<()> {
    let wanted = CreateToken {
        vm: a.vm,
        may: a.may,
        seconds: a.valid.as_secs(),
        to: a.to,
        cpus: a.cpus,
        memory_mib: a.memory.map(|bytes| bytes >> 20),
        disk_bytes: a.disk,
        bits_per_second: a.bandwidth.map(|rate| rate.0),
    };
    print_text(context, "/tokens", &wanted).await
}

async fn attenuate(context: &Context, a: TokenPass) -> Outcome<()> {
    let wanted = PassToken {
        token: read(&a.token)?,
        may: a.may,
        seconds: a.valid.map(|valid| valid.as_secs()),
        to: a.to,
    };
    print_text(context, "/tokens/attenuate", &wanted).await
}

/// Prints the token alone, so that it can be sent on; what it allows goes to standard error.
async fn print_text(context: &Context, path: &str, wanted: &impl serde::Serialize) -> Outcome<()> {
    let made: TokenView = context.daemon().await?.post(path, wanted).await?;
    report(context, &made, || {
        println!("{}", made.token);
        eprintln!(
            "{} until {}; there: p2pvm token add FILE",
            allowed(&made),
            made.until
        );
    })
}

/// What a token allows, as a sentence.
fn allowed(token: &TokenView) -> String {
    let may = match token.may.join(", ") {
        create if create == "create" => "make VMs on".to_owned(),
        rights => rights,
    };
    format!("{} may {may} {}", token.to, token.on)
}

async fn show(context: &Context, path: &str, token: &str) -> Outcome<()> {
    let text = TokenText {
        token: read(token)?,
    };
    let view: TokenView = context.daemon().await?.post(path, &text).await?;
    report(context, &view, || {
        println!("{}: {}", view.id, allowed(&view));
        println!(
            "  given by {}, until {}",
            view.from.join(", then "),
            view.until
        );
        if let Some(note) = &view.note {
            println!("  {note}");
        }
    })
}

async fn list(context: &Context) -> Outcome<()> {
    let tokens: Vec<TokenView> = context.daemon().await?.get("/tokens").await?;
    report(context, &tokens, || {
        let rows: Vec<[String; 7]> = tokens
            .iter()
            .map(|t| {
                [
                    t.id.clone(),
                    t.on.clone(),
                    t.may.join(","),
                    t.from.join(" > "),
                    t.to.clone(),
                    t.until.clone(),
                    t.state.word().to_owned(),
                ]
            })
            .collect();
        print::table(["ID", "ON", "MAY", "FROM", "TO", "UNTIL", "STATE"], &rows);
    })
}

async fn revoke(context: &Context, token: &str) -> Outcome<()> {
    // An id is no file's name.
    let is_id = token.len() == 12 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    let token = match is_id {
        true => token.to_ascii_lowercase(),
        false => read(token)?,
    };
    let wanted = RevokeToken { token };
    let mut daemon = context.daemon().await?;
    let revoked: TokenRevoked = daemon.post("/tokens/revoke", &wanted).await?;
    report(context, &revoked, || {
        match &revoked.host {
            Some(host) => println!(
                "token {} for {} is revoked: {host} refuses it from now on",
                revoked.revoked, revoked.on
            ),
            None => println!(
                "token {} for {} is revoked, but its host does not know yet and may still accept \
                 it; it is told as soon as possible",
                revoked.revoked, revoked.on
            ),
        }
        if let Some(note) = &revoked.note {
            println!("  {note}");
        }
    })
}

async fn remove(context: &Context, id: &str) -> Outcome<()> {
    let path = p2pvm_api::token_path(id)?;
    let nothing: Option<&()> = None;
    let removed: TokenRemoved = context
        .daemon()
        .await?
        .ask(Method::DELETE, &path, nothing)
        .await?;
    report(context, &removed, || {
        println!("token {} is forgotten here", removed.removed)
    })
}

/// A token from the command line, a file or standard input.
fn read(from: &str) -> Outcome<String> {
    if from.trim_start().starts_with("p2pvmtoken") {
        return Ok(from.trim().to_owned());
    }
    let text = read_text(from, MAX_READ_BYTES, "token")?;
    if text.trim().is_empty() {
        return Err(Failure::usage(format!("{from} is empty: it has no token")));
    }
    Ok(text.trim().to_owned())
}
