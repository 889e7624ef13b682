//! What the demo and the bench read from the JSON that p2pvm commands print, one function for each
//! fact. A missing or malformed field is `None`.

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
