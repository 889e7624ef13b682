//! The OpenAPI 3.1 document of the table of operations.

use super::{definitions, lines, of_answers, of_requests};
use crate::{
    Failure, NoConsole,
    operations::{Answer, Asker, OPERATIONS, Operation, Parameter},
};
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

const ABOUT: &str = "HTTP with JSON. The daemon serves the operations of `root` on its unix \
    socket, those of `group` there to users in the group `p2pvm`, those of `member` on a stream of \
    the overlay to members of the network, and those of `page` to the dashboard's page and to \
    programs with its token. Paths are below `/v1`; the unix socket has them without it too, the \
    dashboard below `/api`. `x-askers` names the callers of each. A reader's token allows GET \
    requests only, and no console. A request that fails is answered by a Failure; 429 and \
    `Retry-After` say that a caller asks too often. A reader of answers ignores fields that it \
    does not know.";

/// The document.
pub fn text() -> String {
    let (mut requests, mut answers) = (of_requests(), of_answers());
    let mut paths = Map::new();
    for operation in OPERATIONS.iter().copied().flatten() {
        let at = paths.entry(operation.path).or_insert_with(|| json!({}));
        at[operation.method.word().to_lowercase()] =
            described(operation, &mut requests, &mut answers);
    }
    for asked in [
        answers.subschema_for::<Failure>(),
        answers.subschema_for::<NoConsole>(),
    ] {
        assert!(asked.get("$ref").is_some());
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "p2pvm control API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [
            { "url": "http://p2pvm", "description": "The daemon's unix socket." },
            { "url": "http://localhost/v1", "description": "The dashboard." },
        ],
        "paths": paths,
        "components": {
            "schemas": definitions(requests, answers),
            "responses": {
                "Failure": {
                    "description": "It was not done.",
                    "content": { "application/json": {
                        "schema": { "$ref": "#/components/schemas/Failure" },
                    } },
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token that `p2pvm dashboard` prints.",
                },
            },
        },
    });
    let mut text = serde_json::to_string_pretty(&document).expect("a document is JSON");
    text.push('\n');
    text
}

fn described(
    operation: &Operation,
    requests: &mut SchemaGenerator,
    answers: &mut SchemaGenerator,
) -> Value {
    let askers: Vec<_> = operation.askers.iter().map(|asker| asker.word()).collect();
    let mut said = json!({
        "summary": operation.summary,
        "x-askers": askers,
        "responses": responses(&operation.answer, answers),
    });
    let segments = operation.path.split('/').filter_map(|segment| {
        let name = segment.strip_prefix('{')?.strip_suffix('}')?;
        let schema = json!({ "type": "string" });
        Some(json!({ "name": name, "in": "path", "required": true, "schema": schema }))
    });
    let parameters: Vec<_> = segments
        .chain(operation.query.iter().map(parameter))
        .collect();
    if !parameters.is_empty() {
        said["parameters"] = parameters.into();
    }
    if let Some(body) = operation.body {
        let schema = (body.schema)(requests);
        said["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": schema } },
        });
    }
    if operation.askers.contains(&Asker::Page) {
        // The token is for the page; the socket is open to root alone and asks for none.
        let others = operation.askers.len() > 1;
        said["security"] = if others {
            json!([{}, { "token": [] }])
        } else {
            json!([{ "token": [] }])
        };
    }
    said
}

fn parameter(parameter: &Parameter) -> Value {
    let schema = match parameter.words {
        [] => json!({ "type": "boolean", "default": false }),
        ["*"] => json!({ "type": "string" }),
        words => json!({ "type": "string", "enum": words }),
    };
    json!({
        "name": parameter.name,
        "in": "query",
        "description": parameter.meaning,
        "schema": schema,
    })
}

fn responses(answer: &Answer, answers: &mut SchemaGenerator) -> Value {
    let (status, said) = match answer {
        Answer::Json(of) => {
            let content = json!({ "application/json": { "schema": (of.schema)(answers) } });
            (
                "200",
                json!({ "description": "The answer.", "content": content }),
            )
        }
        Answer::Lines { line, .. } => {
            let line = (line.schema)(answers).to_value();
            let schema = json!({ "oneOf": lines(&line) });
            let content = json!({ "application/x-ndjson": { "schema": schema } });
            let said = "Lines of JSON, each of this schema; `done` or `error` is in the last one.";
            ("200", json!({ "description": said, "content": content }))
        }
        Answer::Figures(of) => {
            let content = json!({
                "text/plain; version=0.0.4": { "schema": { "type": "string" } },
                "application/json": { "schema": (of.schema)(answers) },
            });
            let said = "Figures in Prometheus' text format, or the same as JSON.";
            ("200", json!({ "description": said, "content": content }))
        }
        Answer::Console => {
            let said = "The connection is the console's: bytes after an upgrade to `console`, or \
                for the page a WebSocket of the subprotocol `p2pvm-console` with binary messages. \
                A text message there is a NoConsole.";
            ("101", json!({ "description": said }))
        }
    };
    json!({ status: said, "default": { "$ref": "#/components/responses/Failure" } })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a schema that says which values it has.
    const TYPED: [&str; 6] = ["$ref", "allOf", "anyOf", "const", "enum", "oneOf"];

    /// Whether a schema has any object, or any value at all.
    fn is_untyped(schema: &Value) -> bool {
        let Some(fields) = schema.as_object() else {
            return schema != false;
        };
        if TYPED.iter().any(|word| fields.contains_key(*word)) {
            return false;
        }
        match fields.get("type").and_then(Value::as_str) {
            Some("object") => !fields.contains_key("properties"),
            Some("array") => !fields.contains_key("items") && !fields.contains_key("prefixItems"),
            Some(_) => false,
            None => !fields.get("type").is_some_and(Value::is_array),
        }
    }

    /// Goes through a schema and those within it.
    fn look(at: &str, schema: &Value, found: &mut Vec<String>) {
        if is_untyped(schema) {
            found.push(at.to_owned());
        }
        for word in [
            "properties",
            "items",
            "prefixItems",
            "allOf",
            "anyOf",
            "oneOf",
        ] {
            let at = format!("{at}/{word}");
            match schema.get(word) {
                Some(Value::Array(all)) => all.iter().for_each(|one| look(&at, one, found)),
                Some(Value::Object(all)) if word == "properties" => all
                    .iter()
                    .for_each(|(name, one)| look(&format!("{at}/{name}"), one, found)),
                Some(one) => look(&at, one, found),
                None => {}
            }
        }
    }

    /// Finds the schemas of a document.
    fn untyped(at: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let at = format!("{at}/{key}");
                    match (key.as_str(), value) {
                        ("schema", one) => look(&at, one, found),
                        ("schemas", Value::Object(all)) => all
                            .iter()
                            .for_each(|(name, one)| look(&format!("{at}/{name}"), one, found)),
                        _ => untyped(&at, value, found),
                    }
                }
            }
            Value::Array(all) => all.iter().for_each(|value| untyped(at, value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_question_and_every_answer_has_a_type_with_fields() {
        let document: Value = serde_json::from_str(&text()).unwrap();
        let mut found = Vec::new();
        untyped("", &document, &mut found);
        assert_eq!(found, [""; 0]);
        for unknown in [json!(true), json!({}), json!({ "type": "object" })] {
            let line =
                json!({ "oneOf": [{ "type": "object", "properties": { "done": unknown } }] });
            let mut found = Vec::new();
            untyped("", &json!({ "schema": line }), &mut found);
            assert_eq!(found, ["/schema/oneOf/properties/done"]);
        }
    }
}
