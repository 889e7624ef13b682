//! `p2pvm acl` and `p2pvm route`.

use super::{
    Context,
    args::Routes,
    policy_args::Acl,
    print::{self, report},
    read_text,
};
use p2pvm_api::{
    AcceptRoutes, AclAnswer, AclCheck, AclSet, AclShow, AclVerdict, Outcome, RouteOffered,
    RouteSubnet, RouteView, RouteWithdrawn, RoutesAccepted,
};

/// The most bytes read of a policy; the daemon enforces the real limit.
const MAX_READ_BYTES: u64 = 200 << 10;

pub(crate) async fn acl(context: &Context, acl: Acl) -> Outcome<()> {
    match acl {
        Acl::Set { file } => set(context, &file).await,
        Acl::Show => show(context).await,
        Acl::Check(a) => {
            check(
                context,
                AclCheck {
                    from: a.from,
                    to: a.to,
                    traffic: a.traffic,
                },
            )
            .await
        }
    }
}

async fn set(context: &Context, file: &str) -> Outcome<()> {
    let text = read_text(file, MAX_READ_BYTES, "policy")?;
    let answer: AclAnswer = context
        .daemon()
        .await?
        .post("/acl", &AclSet { text })
        .await?;
    if context.json {
        return print::json(&answer);
    }
    println!(
        "policy version {}: {} rule(s), default {}; {} connected member(s) are told",
        answer.version, answer.rules, answer.default, answer.told
    );
    for warning in &answer.warnings {
        eprintln!("note: {warning}");
    }
    Ok(())
}

async fn show(context: &Context) -> Outcome<()> {
    let show: AclShow = context.daemon().await?.get("/acl").await?;
    if context.json {
        return print::json(&show);
    }
    match (&show.version, &show.text) {
        (Some(version), Some(text)) => {
            println!(
                "# version {version}, signed by {} at {}; {} packet(s) dropped here",
                print::or_dash(show.signed_by.as_ref()),
                print::or_dash(show.signed_at.as_ref()),
                show.denied_here
            );
            print!("{text}{}", if text.ends_with('\n') { "" } else { "\n" });
        }
        _ => println!(
            "# the network has no policy: everything is allowed between its members and guests"
        ),
    }
    Ok(())
}

async fn check(context: &Context, question: AclCheck) -> Outcome<()> {
    let verdict: AclVerdict = context
        .daemon()
        .await?
        .post("/acl/check", &question)
        .await?;
    if context.json {
        return print::json(&verdict);
    }
    println!(
        "{}: {} to {}, {}",
        if verdict.allowed { "allowed" } else { "denied" },
        verdict.from,
        verdict.to,
        verdict.traffic
    );
    println!("  {}", verdict.why);
    println!("  {}", verdict.effect);
    Ok(())
}

pub(crate) async fn route(context: &Context, routes: Routes) -> Outcome<()> {
    match routes {
        Routes::List => list(context).await,
        Routes::Offer { subnet } => offer(context, subnet).await,
        Routes::Withdraw { subnet } => withdraw(context, subnet).await,
        Routes::Accept { subnet, off } => accept(context, AcceptRoutes { on: !off, subnet }).await,
    }
}

async fn offer(context: &Context, subnet: String) -> Outcome<()> {
    let wanted = RouteSubnet { subnet };
    let answer: RouteOffered = context
        .daemon()
        .await?
        .post("/routes/offer", &wanted)
        .await?;
    report(context, &answer, || {
        println!(
            "{}: {}",
            wanted.subnet,
            answer.note.as_deref().unwrap_or("offered")
        )
    })
}

async fn withdraw(context: &Context, subnet: String) -> Outcome<()> {
    let wanted = RouteSubnet { subnet };
    let answer: RouteWithdrawn = context
        .daemon()
        .await?
        .post("/routes/withdraw", &wanted)
        .await?;
    report(context, &answer, || {
        println!("{} is no longer offered", wanted.subnet)
    })
}

async fn accept(context: &Context, wanted: AcceptRoutes) -> Outcome<()> {
    let answer: RoutesAccepted = context
        .daemon()
        .await?
        .post("/routes/accept", &wanted)
        .await?;
    report(context, &answer, || match (&wanted.subnet, wanted.on) {
        (Some(subnet), on) => println!(
            "{subnet}, offered by others, is {}used here",
            if on { "" } else { "not " }
        ),
        (None, true) => println!("others' subnets are used; {} of them now", answer.used),
        (None, false) => println!("others' subnets are not used"),
    })
}

async fn list(context: &Context) -> Outcome<()> {
    let routes: Vec<RouteView> = context.daemon().await?.get("/routes").await?;
    if context.json {
        return print::json(&routes);
    }
    let rows: Vec<_> = routes
        .into_iter()
        .map(|r| {
            [
                r.subnet,
                r.by,
                if r.used { "yes" } else { "no" }.to_owned(),
                r.note,
            ]
        })
        .collect();
    print::table(["SUBNET", "BY", "USED", "NOTE"], &rows);
    Ok(())
}
