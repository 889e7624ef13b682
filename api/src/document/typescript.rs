//! The types of the dashboard's page: an interface a struct, a union an enum. A field that is
//! skipped at times may be missing (`?`); one that may be null is `| null`.

use super::{definitions, lines, of_answers, of_requests};
use crate::{
    Explained, Failure, Line, MigrateVm, MoveCancelled, NoConsole, OfferChange, OfferOff,
    OfferView, RestoreVm, SnapshotVm, View,
    operations::{Answer, Asker, OPERATIONS},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};
use std::{borrow::Cow, fmt::Write};

const HEAD: &str = "// The words of the daemon's API that this page uses. `make api` writes \
    this file from the types in api/src: change those.\n";

/// Stands for a parameter of a generic type.
struct Parameter<const ITEM: bool>;

impl<const ITEM: bool> JsonSchema for Parameter<ITEM> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        if ITEM { "Item" } else { "Done" }.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "$ref": format!("#/{}", Self::schema_name()) })
    }
}

/// The lines of streamed answers, and the result of each operation of the page that has one.
fn streamed(answers: &mut SchemaGenerator) -> String {
    let line = answers.subschema_for::<Line<Parameter<false>, Parameter<true>>>();
    let mut text = "\n/** One line of a streamed answer, with the result `Done` or one of several \
        results `Item`. */\nexport type Line<Done, Item = never> =\n"
        .to_owned();
    for one in lines(line.as_value()) {
        comment(&mut text, "  ", one);
        let _ = writeln!(text, "  | {}", kind(one));
    }
    text.truncate(text.trim_end().len());
    text.push_str(
        ";\n\n/** The results of the operations that are answered in lines, by the last word of \
            their paths. */\nexport interface Results {\n",
    );
    let of_page = |asker: &Asker| *asker == Asker::Page;
    for operation in OPERATIONS.iter().copied().flatten() {
        let Answer::Lines { done, .. } = operation.answer else {
            continue;
        };
        if operation.askers.iter().any(of_page) {
            let word = operation.path.rsplit('/').next().unwrap_or_default();
            let done = kind((done.schema)(answers).as_value());
            let _ = writeln!(text, "  /** {} */\n  {word}: {done};", operation.summary);
        }
    }
    text + "}\n"
}

/// The file.
pub fn text() -> String {
    let (mut requests, mut answers) = (of_requests(), of_answers());
    requests.subschema_for::<MigrateVm>();
    requests.subschema_for::<OfferChange>();
    requests.subschema_for::<OfferOff>();
    requests.subschema_for::<RestoreVm>();
    requests.subschema_for::<SnapshotVm>();
    answers.subschema_for::<Explained>();
    answers.subschema_for::<Failure>();
    answers.subschema_for::<MoveCancelled>();
    answers.subschema_for::<NoConsole>();
    answers.subschema_for::<OfferView>();
    answers.subschema_for::<View>();
    let mut text = HEAD.to_owned() + &streamed(&mut answers);
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
        panic!("{schema} is a type with any value");
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
        _ => panic!("{schema:?} has no type"),
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
                panic!("{schema:?} is an object with any fields");
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
