//! `p2pvm traffic`: the packet plane's traffic matrix.

use super::{
    Context,
    print::{self, or_dash},
};
use indicatif::HumanBytes;
use p2pvm_api::{Outcome, Traffic};

pub(crate) async fn show(context: &Context, all: bool) -> Outcome<()> {
    let rows: Vec<Traffic> = context
        .daemon()
        .await?
        .get(&format!("/traffic?all={all}"))
        .await?;
    if context.json {
        return print::json(&rows);
    }
    let rate = |bytes: f64| format!("{}/s", HumanBytes(bytes as u64));
    let rows: Vec<_> = rows
        .iter()
        .map(|t| {
            [
                t.local.clone(),
                t.remote.clone(),
                t.name.clone(),
                or_dash(t.path.as_ref()),
                rate(t.bytes_per_second_1s),
                rate(t.bytes_per_second_4s),
                rate(t.bytes_per_second_16s),
                HumanBytes(t.sent_bytes).to_string(),
                HumanBytes(t.received_bytes).to_string(),
            ]
        })
        .collect();
    print::table(
        [
            "HERE", "WITH", "AT", "PATH", "1 S", "4 S", "16 S", "SENT", "RECEIVED",
        ],
        &rows,
    );
    Ok(())
}
