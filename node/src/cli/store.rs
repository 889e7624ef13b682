//! `p2pvm store`.

use super::{
    Context,
    print::{self, report},
    store_args::{Gc, StoreArgs, StoreVerb},
};
use indicatif::HumanBytes;
use p2pvm_api::{CollectStore, Outcome, ScrubView, StoreAmount, StoreCollected, StoreView};

pub(crate) async fn run(context: &Context, a: StoreArgs) -> Outcome<()> {
    match a.verb {
        None => show(context).await,
        Some(StoreVerb::Gc(a)) => collect(context, &a).await,
    }
}

async fn show(context: &Context) -> Outcome<()> {
    let view: StoreView = context.daemon().await?.get("/store").await?;
    report(context, &view, || {
        let row = |what: &str, of: &StoreAmount| {
            [
                what.to_owned(),
                of.chunks.to_string(),
                HumanBytes(of.bytes).to_string(),
            ]
        };
        let mut rows = vec![
            row("images", &view.images),
            row("snapshots here", &view.snapshots),
        ];
        let replicas = view.replicas.iter();
        rows.extend(replicas.map(|of| row(&format!("replicas for {}", of.member), &of.amount)));
        rows.push(row("unused", &view.unreferenced));
        rows.push(row("all", &view.all));
        print::table(["USED BY", "CHUNKS", "DISK"], &rows);
        println!();
        let stored = view.stored.iter().map(|one| {
            [
                one.name.clone(),
                HumanBytes(one.all.bytes).to_string(),
                HumanBytes(one.alone.bytes).to_string(),
                one.members.join(", "),
            ]
        });
        let stored: Vec<[String; 4]> = stored.collect();
        print::table(["KEPT", "DISK", "ALONE", "FOR"], &stored);
        println!();
        println!("free: {}", HumanBytes(view.free_bytes));
        println!("{}", scrub(&view.scrub));
    })
}

/// The search for damage in words.
fn scrub(view: &ScrubView) -> String {
    let finished = match &view.finished {
        Some(at) => format!("all chunks were last checked until {at}"),
        None => "not all chunks have been checked yet".to_owned(),
    };
    let mut said = match view.total {
        0 => finished,
        total => format!("{finished}; {} of {total} in this pass", view.read),
    };
    if view.damaged > 0 {
        said += &format!("; {} were damaged", view.damaged);
    }
    if view.unrepaired > 0 {
        said += &format!(
            "; {} snapshots or images lack chunks that no connected member has",
            view.unrepaired
        );
    }
    said
}

async fn collect(context: &Context, a: &Gc) -> Outcome<()> {
    let request = CollectStore { dry_run: a.dry_run };
    let mut daemon = context.daemon().await?;
    let done: StoreCollected = daemon.post("/store/gc", &request).await?;
    report(context, &done, || println!("{}", collected(&done)))
}

fn collected(done: &StoreCollected) -> String {
    if done.unswept {
        return "nothing goes until what is damaged is repaired: what it uses is not known"
            .to_owned();
    }
    let (chunks, size) = (done.removed.chunks, HumanBytes(done.removed.bytes));
    match done.dry_run {
        true => format!("{chunks} chunks would go, {size}; {} stay", done.kept),
        false => format!("{chunks} chunks are removed, {size}; {} stay", done.kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsed_collection_says_that_nothing_went() {
        let done = StoreCollected {
            dry_run: true,
            kept: 7,
            removed: StoreAmount {
                bytes: 4096,
                chunks: 1,
            },
            ..StoreCollected::default()
        };
        assert_eq!(collected(&done), "1 chunks would go, 4.00 KiB; 7 stay");
        let damaged = StoreCollected {
            unswept: true,
            ..done
        };
        assert!(collected(&damaged).starts_with("nothing goes"));
    }

    #[test]
    fn damage_is_told_with_what_cannot_be_repaired() {
        let view = ScrubView {
            damaged: 2,
            read: 3,
            total: 9,
            unrepaired: 1,
            ..ScrubView::default()
        };
        let said = scrub(&view);
        assert!(
            said.contains("3 of 9") && said.contains("2 were damaged"),
            "{said}"
        );
        assert!(said.contains("1 snapshots or images lack"), "{said}");
    }
}
