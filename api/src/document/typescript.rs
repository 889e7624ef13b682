//! The types of the dashboard's page: an interface a struct, a union an enum. A field that is
//! skipped at times may be missing (`?`); one that may be null is `| null`.

use super::{definitions, of_answers, of_requests};
use crate::{
    Explained, Failure, Line, MigrateVm, MoveCancelled, NoConsole, RestoreVm, SnapshotTaken,
    SnapshotVm, View, VmMoved,
};
use serde_json::{Map, Value};
use std::fmt::Write;

const HEAD: &str = "// The words of the daemon's API that this page uses. `make api` writes \
    this file from the types in api/src: change those.\n";

/// The file.
pub fn text() -> String {
    let (mut requests, mut answers) = (of_requests(), of_answers());
    requests.subschema_for::<MigrateVm>();
    requests.subschema_for::<RestoreVm>();
    requests.subschema_for::<SnapshotVm>();
    answers.subschema_for::<Explained>();
    answers.subschema_for::<Failure>();
    answers.subschema_for::<Line>();
    answers.subschema_for::<MoveCancelled>();
    answers.subschema_for::<NoConsole>();
    answers.subschema_for::<SnapshotTaken>();
    answers.subschema_for::<View>();
    answers.subschema_for::<VmMoved>();
    let mut text = HEAD.to_owned();
    for (name, schema) in definitions(requests, answers) {
        text.push('\n');
        comment(&mut text, "", &schema);
        if let Some(fields) = schema.get("properties").and_then(Value::as_object) {
            let _ = writeln!(text, "export interface {name} {{");
            for (field, of) in fields {
                comment(&mut text, "  ", of);
                let may_miss = if is_required(&schema, field) { "" } else { "?" };
                let _ = writeln!(text, "  {field}{may_miss}: {};", kind(of));
            }
            text.push_str("}\n");
        } else {
            let _ = writeln!(text, "export type {name} =");
            for one in alternatives(&schema) {
                comment(&mut text, "  ", one);
                let _ = writeln!(text, "  | {}", kind(one));
            }
            text.truncate(text.trim_end().len());
            text.push_str(";\n");
        }
    }
    text
}

/// The description, without the line breaks of its source and without Rust's links.
fn comment(text: &mut String, indent: &str, schema: &Value) {
    let Some(said) = schema.get("description").and_then(Value::as_str) else {
        return;
    };
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = said.replace("[`", "`").replace("`]", "`");
    let _ = writeln!(text, "{indent}/** {said} */");
}

fn is_required(schema: &Value, field: &str) -> bool {
    let names = schema.get("required").and_then(Value::as_array);
    names.is_some_and(|names| names.iter().any(|name| name == field))
}

fn alternatives(schema: &Value) -> Vec<&Value> {
    let lists = ["oneOf", "anyOf"].map(|key| schema.get(key).and_then(Value::as_array));
    match lists.into_iter().flatten().next() {
        Some(list) => list.iter().collect(),
        None => vec![schema],
    }
}

/// A type as TypeScript writes it where it is used.
fn kind(schema: &Value) -> String {
    let Some(schema) = schema.as_object() else {
        return "unknown".to_owned();
    };
    if let Some(to) = schema.get("$ref").and_then(Value::as_str) {
        return to.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(one) = schema.get("const") {
        return one.to_string();
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return union(words.iter().map(Value::to_string));
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(list) = schema.get(key).and_then(Value::as_array) {
            return union(list.iter().map(kind));
        }
    }
    match schema.get("type") {
        Some(Value::String(one)) => named(one, schema),
        Some(Value::Array(several)) => union(
            several
                .iter()
                .filter_map(Value::as_str)
                .map(|one| named(one, schema)),
        ),
        _ => "unknown".to_owned(),
    }
}

fn union(kinds: impl Iterator<Item = String>) -> String {
    kinds.collect::<Vec<_>>().join(" | ")
}

fn named(word: &str, schema: &Map<String, Value>) -> String {
    match word {
        "integer" | "number" => "number".to_owned(),
        "array" => {
            let of = kind(schema.get("items").unwrap_or(&Value::Null));
            if of.contains(' ') {
                format!("({of})[]")
            } else {
                format!("{of}[]")
            }
        }
        "object" => {
            let Some(fields) = schema.get("properties").and_then(Value::as_object) else {
                return "Record<string, unknown>".to_owned();
            };
            let fields = fields
                .iter()
                .map(|(name, of)| format!("{name}: {}", kind(of)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join("; "))
        }
        // "string", "boolean" and "null" are TypeScript's words too.
        same => same.to_owned(),
    }
}
