//! Writes what others read of this crate: `api/openapi.json` from the table of operations, and
//! `web/src/types.ts`, the types of the dashboard's page. The test here fails while a file in the
//! tree differs from what would be written; with `P2PVM_WRITE_API` set, as `make api` does, it
//! writes both.
//!
//! schemars makes a JSON Schema of each type and follows serde's attributes. All of this is in
//! tests only: the program has no schemas, and a feature for them would give `cargo nextest run
//! --workspace` another build than `-p p2pvm`.

mod openapi;
mod typescript;

use crate::NoItem;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Value, json};
use std::{borrow::Cow, env, fs, path::Path};

/// The words of a [`p2pvm_host::Level`], whose crate has no schemas.
pub(crate) fn level(_: &mut SchemaGenerator) -> Schema {
    use p2pvm_host::Level;
    let words = [Level::Ok, Level::Warning, Level::Failed];
    json_schema!({
        "type": "string",
        "enum": words.map(|level| serde_json::to_value(level).expect("a level is a word")),
    })
}

/// The schema of an enum of words, each with its meaning.
pub(crate) fn words(about: &str, known: &[(&str, &str)]) -> Schema {
    let known = known
        .iter()
        .map(|(word, meaning)| json!({ "type": "string", "const": word, "description": meaning }));
    let later = json!({ "type": "string", "description": "A word of a later version." });
    let any: Vec<Value> = known.chain([later]).collect();
    json_schema!({ "description": about, "anyOf": any })
}

/// No value has this schema.
impl JsonSchema for NoItem {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "NoItem".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        false.into()
    }
}

/// Where schemas refer to each other in OpenAPI.
const COMPONENTS: &str = "/components/schemas";

/// Makes schemas of what the daemon reads: a field that has a default may be missing.
fn of_requests() -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12().for_deserialize();
    settings.definitions_path = COMPONENTS.into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// Makes schemas of what the daemon writes: only a field that is skipped at times may be missing.
fn of_answers() -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = COMPONENTS.into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// All schemas that the two generators have made, by name.
fn definitions(
    mut requests: SchemaGenerator,
    mut answers: SchemaGenerator,
) -> serde_json::Map<String, Value> {
    let mut all = requests.take_definitions(false);
    for (name, mut schema) in answers.take_definitions(false) {
        skipped_is_not_null(&mut schema);
        if let Some(other) = all.insert(name.clone(), schema.clone()) {
            assert_eq!(
                other, schema,
                "{name} is read and written, with other fields"
            );
        }
    }
    all
}

/// The alternatives of a [`crate::Line`]'s schema, without those that have no value.
fn lines(schema: &Value) -> Vec<&Value> {
    let all = schema.get("oneOf").and_then(Value::as_array);
    let has_value = |line: &&Value| {
        let fields = line.get("properties").and_then(Value::as_object);
        fields.is_some_and(|fields| fields.values().all(|field| field != false))
    };
    all.into_iter().flatten().filter(has_value).collect()
}

/// A field of an answer that may be missing is missing where it would be null.
fn skipped_is_not_null(schema: &mut Value) {
    let required = schema.get("required").cloned().unwrap_or_default();
    let is_required = |name: &str| {
        let names = required.as_array();
        names.is_some_and(|names| names.iter().any(|known| known == name))
    };
    let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (_, field) in fields.iter_mut().filter(|(name, _)| !is_required(name)) {
        let Some(Value::Array(kinds)) = field.get_mut("type") else {
            continue;
        };
        kinds.retain(|kind| kind != "null");
        if let [only] = &kinds[..] {
            field["type"] = only.clone();
        }
    }
}

#[test]
fn the_written_api_and_the_pages_types_are_those_of_this_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, text) in [
        ("api/openapi.json", openapi::text()),
        ("web/src/types.ts", typescript::text()),
    ] {
        let file = root.join(path);
        if env::var_os("P2PVM_WRITE_API").is_some() {
            fs::write(&file, &text).expect("writing a file of the tree");
        }
        let known = fs::read_to_string(&file).unwrap_or_default();
        assert!(known == text, "{path} is stale: run 'make api'");
    }
}
