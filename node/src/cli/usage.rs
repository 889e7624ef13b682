//! `p2pvm usage`.

use super::{
    Context,
    print::{self, or_dash, report},
    usage_args::UsageArgs,
};
use indicatif::HumanBytes;
use p2pvm_api::{Outcome, ReceiptState, UsageBy, UsageReceipts, UsageRequest, UsageRow, UsageView};

pub(crate) async fn show(context: &Context, a: &UsageArgs) -> Outcome<()> {
    let request = UsageRequest {
        by: a.by.as_deref().and_then(by),
        here: !a.mine,
        mine: !a.here,
        seconds: a.since.as_secs(),
    };
    let view: UsageView = context.daemon().await?.post("/usage", &request).await?;
    report(context, &view, || {
        if request.here {
            println!("used here since {}:", view.since);
            rows(&view.here);
        }
        if request.here && request.mine {
            println!();
        }
        if request.mine {
            println!("used of other hosts since {}:", view.since);
            rows(&view.mine);
        }
    })
}

/// The words are those that the grammar allows.
fn by(word: &str) -> Option<UsageBy> {
    match word {
        "owner" => Some(UsageBy::Owner),
        "host" => Some(UsageBy::Host),
        "vm" => Some(UsageBy::Vm),
        _ => None,
    }
}

fn rows(rows: &[UsageRow]) {
    let rows: Vec<[String; 10]> = rows
        .iter()
        .map(|row| {
            [
                or_dash(row.owner.as_ref()),
                or_dash(row.host.as_ref()),
                or_dash(row.vm.as_ref()),
                cpu(row.cpu_seconds),
                format!("{:.2}", row.memory_gib_hours),
                format!("{:.2}", row.disk_gib_hours),
                format!("{:.2}", row.replica_gib_hours),
                HumanBytes(row.sent_bytes).to_string(),
                HumanBytes(row.received_bytes).to_string(),
                or_dash(row.receipts.as_ref().map(receipts)),
            ]
        })
        .collect();
    let titles = [
        "OWNER", "HOST", "VM", "CPU", "MEMORY", "DISK", "REPLICAS", "SENT", "RECEIVED", "RECEIPTS",
    ];
    print::table(titles, &rows);
}

fn cpu(seconds: f64) -> String {
    if seconds < 3600.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.2} h", seconds / 3600.0)
    }
}

fn receipts(receipts: &UsageReceipts) -> String {
    let until = receipts.confirmed_until.as_deref();
    match (receipts.state, until) {
        (ReceiptState::Own, _) => "own VMs".to_owned(),
        (ReceiptState::Confirmed, Some(until)) => format!("confirmed until {until}"),
        (ReceiptState::Open, Some(until)) => format!("not yet confirmed after {until}"),
        (ReceiptState::Confirmed | ReceiptState::Open, None) => "not yet confirmed".to_owned(),
        (ReceiptState::Refused, _) => {
            let why = receipts.refused.as_deref().unwrap_or("no reason given");
            format!("refused: {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_say_whether_both_sides_agree() {
        let said = |state, until: Option<&str>, refused: Option<&str>| {
            receipts(&UsageReceipts {
                confirmed_until: until.map(str::to_owned),
                refused: refused.map(str::to_owned),
                state,
            })
        };
        assert_eq!(said(ReceiptState::Own, None, None), "own VMs");
        assert_eq!(said(ReceiptState::Open, None, None), "not yet confirmed");
        let ten = Some("2026-12-01T10:00:00Z");
        assert!(said(ReceiptState::Open, ten, None).starts_with("not yet confirmed after 2026"));
        assert!(said(ReceiptState::Confirmed, ten, None).starts_with("confirmed until 2026"));
        assert_eq!(
            said(ReceiptState::Refused, ten, Some("it is forged")),
            "refused: it is forged"
        );
    }

    #[test]
    fn processor_time_is_in_seconds_below_an_hour() {
        assert_eq!(
            (cpu(12.34), cpu(5400.0)),
            ("12.3 s".into(), "1.50 h".into())
        );
    }
}
