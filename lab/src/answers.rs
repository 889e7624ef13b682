//! The JSON that p2pvm commands print, as the lab reads it: one function for each fact. A missing
//! or malformed field is `None`.

use serde_json::Value;

/// How long `join` took from the command to the address, milliseconds.
pub(crate) fn joined_ms(join: &Value) -> Option<f64> {
    join["joined_ms"].as_f64()
}

/// How long `join` took until another member admitted this one, milliseconds.
pub(crate) fn admitted_ms(join: &Value) -> Option<f64> {
    join["admitted_ms"].as_f64()
}

/// How long a `join`'s daemon took to claim its address, milliseconds.
pub(crate) fn claim_ms(join: &Value) -> Option<f64> {
    join["start_ms"]["claim"].as_f64()
}

/// The address in the answer of `join`, `status`, `vm create` or `vm restore`.
pub(crate) fn address(answer: &Value) -> Option<&str> {
    answer["address"].as_str()
}

/// The member id in the answer of `join`.
pub(crate) fn member(join: &Value) -> Option<&str> {
    join["member"].as_str()
}

/// The invite of `invite`.
pub(crate) fn invite(answer: &Value) -> Option<&str> {
    answer["invite"].as_str()
}

/// The path and the round trip in milliseconds of a line of `ping`, if the probe was answered.
pub(crate) fn answered_probe(line: &Value) -> Option<(&str, f64)> {
    Some((line["path"].as_str()?, line["rtt_ms"].as_f64()?))
}

/// The path to the member with this address, in the answer of `peers`.
pub(crate) fn path_to<'a>(peers: &'a Value, address: &str) -> Option<&'a str> {
    let mut peers = peers.as_array()?.iter();
    peers.find(|peer| peer["address"] == address)?["path"].as_str()
}

/// What the daemon of a `status` says of its NAT.
pub(crate) fn nat(status: &Value) -> Option<&str> {
    status["nat"].as_str()
}

/// The last punches to a member in a `status`: how many, and after how many milliseconds the path
/// was direct, if it was.
pub(crate) fn punches_to(status: &Value, member: &str) -> Option<(u64, Option<f64>)> {
    let mut listed = status["punches"]["list"].as_array()?.iter();
    let punch = listed.rfind(|punch| punch["member"] == member)?;
    let tries = punch["tries"].as_u64().unwrap_or_default();
    Some((tries, punch["direct_ms"].as_f64()))
}

/// How much memory the daemon of a `status` takes, bytes.
pub(crate) fn resident_bytes(status: &Value) -> Option<f64> {
    status["resident_bytes"].as_f64()
}

/// How many members the daemon of a `status` is connected to.
pub(crate) fn connected(status: &Value) -> Option<u64> {
    status["connected"].as_u64()
}

/// How long a `vm migrate` took, milliseconds.
pub(crate) fn total_ms(migration: &Value) -> Option<f64> {
    migration["total_ms"].as_f64()
}

/// How long QEMU says that the guest of a `vm migrate` stood still, milliseconds.
pub(crate) fn downtime_ms(migration: &Value) -> Option<f64> {
    migration["downtime_ms"].as_f64()
}

/// How long the guest of a `vm snapshot` stood still, milliseconds.
pub(crate) fn pause_ms(snapshot: &Value) -> Option<f64> {
    snapshot["pause_ms"].as_f64()
}

/// Whether enough other members hold the copy that `vm snapshot` made.
pub(crate) fn is_durable(snapshot: &Value) -> bool {
    snapshot["state"] == "durable"
}

/// The host of a `vm show`, if the guest runs there.
pub(crate) fn running_host(vm: &Value) -> Option<&str> {
    vm["host"].as_str().filter(|_| vm["state"] == "running")
}

/// Whether the guest of a `vm show` runs and nothing else is being done with it.
pub(crate) fn is_at_rest(vm: &Value) -> bool {
    vm["state"] == "running" && vm["activity"].is_null()
}
