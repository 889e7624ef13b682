//! Paths of the API.

use crate::{Failure, Outcome};

/// The API path of a VM; refuses what could not be one before it is put into a URL.
pub fn vm_path(name: &str, operation: &str) -> Outcome<String> {
    if name.is_empty()
        || !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return Err(Failure::usage(format!(
            "'{name}' cannot be a VM's name: use letters, digits and '-'"
        )));
    }
    let slash = if operation.is_empty() { "" } else { "/" };
    Ok(format!("/vms/{name}{slash}{operation}"))
}

/// The API path of a snapshot; refuses what could not be one's name.
pub fn snapshot_path(vm: &str, snapshot: &str, operation: &str) -> Outcome<String> {
    if snapshot.is_empty()
        || !snapshot
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return Err(Failure::usage(format!(
            "'{snapshot}' cannot be a snapshot's name: see 'p2pvm vm snapshot list {vm}'"
        )));
    }
    let slash = if operation.is_empty() { "" } else { "/" };
    vm_path(vm, &format!("snapshots/{snapshot}{slash}{operation}"))
}

/// The API path of a token that is kept; refuses what could not be one's id.
pub fn token_path(id: &str) -> Outcome<String> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::usage(format!(
            "'{id}' cannot be a token's id: see 'p2pvm token list'"
        )));
    }
    Ok(format!("/tokens/{id}"))
}
