//! The OpenAPI 3.1 document of the table of operations.

use super::{definitions, of_answers, of_requests};
use crate::{
    Failure, Line, NoConsole,
    operations::{Answer, Asker, OPERATIONS, Operation, Parameter},
};
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

const ABOUT: &str = "HTTP with JSON. The daemon serves the operations of `root` on its unix \
    socket, those of `member` on a stream of the overlay to members of the network, and those of \
    `page`, below `/api`, to the dashboard's page. `x-askers` names the callers of each. A request \
    that fails is answered by a Failure. A reader ignores fields that it does not know.";

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
        answers.subschema_for::<Line>(),
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
            { "url": "http://localhost/api", "description": "The dashboard, for its page." },
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
                    "description": "The token that `p2pvm dashboard` prints.",
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
        Answer::Lines { item, done } => {
            let line = json!({ "$ref": "#/components/schemas/Line" });
            let mut content = json!({ "schema": line, "x-done": (done.schema)(answers) });
            if let Some(item) = item {
                content["x-item"] = (item.schema)(answers).into();
            }
            let said = "One Line a line; `x-item` and `x-done` are the values of its `item` and \
                `done`.";
            let content = json!({ "application/x-ndjson": content });
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

    /// The places in a document where an object is told of that has no fields.
    fn untyped(at: &str, value: &Value, found: &mut Vec<String>) {
        if value == &json!({ "type": "object" }) {
            found.push(at.to_owned());
        }
        match value {
            Value::Object(fields) => fields
                .iter()
                .for_each(|(key, value)| untyped(&format!("{at}/{key}"), value, found)),
            Value::Array(all) => all.iter().for_each(|value| untyped(at, value, found)),
            _ => {}
        }
    }

    #[test]
    fn no_question_and_no_answer_is_an_object_without_fields() {
        let document: Value = serde_json::from_str(&text()).unwrap();
        let mut found = Vec::new();
        untyped("", &document, &mut found);
        assert_eq!(found, [""; 0]);
    }
}
