//! The written schema: docs/api/*.schema.json are made from the types, and answers where everything happened have every
//! field of them. The real-kernel tests hold live answers against the same files.

use std::collections::BTreeSet;

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::connection::Connection;
use super::listener::Listener;
use super::resets::Resets;
use super::service::ServiceTotals;
use super::status::Status;
use super::storm::Storms;
use super::{event, line, listener, service, status};
use crate::http::params::Refusal;

/// A schema that allows no other fields than its own.
fn finished(mut schema: Value, title: &str) -> Value {
    close(&mut schema);
    schema["title"] = title.into();
    schema
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("properties").is_some_and(Value::is_object) && object.get("type") == Some(&json!("object")) {
                object.insert("additionalProperties".to_owned(), false.into());
            }
            object.values_mut().for_each(close);
        }
        Value::Array(all) => all.iter_mut().for_each(close),
        _ => {}
    }
}

fn of<T: JsonSchema>(title: &str) -> Value {
    finished(SchemaGenerator::default().into_root_schema_for::<T>().to_value(), title)
}

fn of_events() -> Value {
    let mut generator = SchemaGenerator::default();
    let mut kinds = event::schemas(&mut generator);
    kinds.push(generator.subschema_for::<super::storm::Told>());
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": kinds,
        "$defs": generator.take_definitions(true),
    });
    schema = finished(schema, "the data of an event of /api/v1/events");
    schema
}

/// Paths of the fields of a schema, in all its parts.
fn fields(schema: &Value, into: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Object(properties)) = object.get("properties") {
                into.extend(properties.keys().cloned());
            }
            object.values().for_each(|part| fields(part, into));
        }
        Value::Array(all) => all.iter().for_each(|part| fields(part, into)),
        _ => {}
    }
}

/// The fields of an answer.
fn keys(answer: &Value, into: &mut BTreeSet<String>) {
    match answer {
        Value::Object(object) => {
            into.extend(object.keys().cloned());
            object.values().for_each(|part| keys(part, into));
        }
        Value::Array(all) => all.iter().for_each(|part| keys(part, into)),
        _ => {}
    }
}

/// Holds answers against a schema, and the schema against the file and the answers.
fn check(name: &str, schema: &Value, answers: &str) {
    crate::golden::check(
        &format!("../docs/api/{name}.schema.json"),
        &(serde_json::to_string_pretty(schema).unwrap() + "\n"),
    );
    let validator = jsonschema::validator_for(schema).unwrap();
    let (mut there, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    for answer in answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if let Err(error) = validator.validate(&answer) {
            panic!("{name}: {error} at {}: {answer}", error.instance_path());
        }
        let mut more = answer.clone();
        more["surplus"] = 1.into();
        assert!(!validator.is_valid(&more), "{name}: a field that is not in the schema is allowed");
        keys(&answer, &mut there);
    }
    fields(schema, &mut wanted);
    let missing: Vec<_> = wanted.difference(&there).collect();
    assert!(missing.is_empty(), "{name}: no answer has {missing:?}");
}

fn golden(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn the_schema_of_connections_has_their_fields_and_no_others() {
    check("connection", &of::<Connection>("a line of /api/v1/connections"), &golden("connections.jsonl"));
}

#[test]
fn the_schema_of_listeners_has_their_fields_and_no_others() {
    check("listener", &of::<Listener>("a line of /api/v1/listeners"), &line(&listener::tests::shown()));
}

#[test]
fn the_schema_of_the_status_has_its_fields_and_no_others() {
    check("status", &of::<Status>("/api/v1/status"), &line(&status::tests::full()));
}

#[test]
fn the_schema_of_services_has_their_fields_and_no_others() {
    let services: String = service::tests::busy().iter().map(line).collect();
    check("service", &of::<ServiceTotals>("a line of /api/v1/services"), &services);
}

/// The evidence is free: a field more in it is none of the schema's.
#[test]
fn the_schema_of_explanations_has_their_fields_and_validates_them() {
    let schema = of::<crate::explain::Explained>("a line of /api/v1/explain");
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    crate::golden::check("../docs/api/explain.schema.json", &text);
    let validator = jsonschema::validator_for(&schema).unwrap();
    for answer in crate::explain::tests::lines().lines() {
        let mut answer: Value = serde_json::from_str(answer).unwrap();
        assert!(validator.is_valid(&answer), "{answer}");
        answer["verdicts"][0]["evidence"]["surplus"] = 1.into();
        assert!(validator.is_valid(&answer), "{answer}");
        answer["verdicts"][0]["surplus"] = 1.into();
        assert!(!validator.is_valid(&answer), "{answer}");
    }
}

#[test]
fn the_schema_of_resets_has_their_fields_and_no_others() {
    check("resets", &of::<Resets>("/api/v1/resets"), &line(&crate::resets::view::tests::resets()));
}

#[test]
fn the_schema_of_storms_has_their_fields_and_no_others() {
    let storms = golden("storms.jsonl");
    check("storms", &of::<Storms>("/api/v1/storms"), storms.lines().next().unwrap());
}

#[test]
fn the_schema_of_events_has_their_fields_and_no_others() {
    let notices = r#"{"event":"missed","missed":3}
{"event":"lost","lost":{"ring":2}}
{"event":"end"}
"#;
    let storms: String = golden("storms.jsonl").lines().skip(1).map(|line| line.to_owned() + "\n").collect();
    check("event", &of_events(), &(golden("events.jsonl") + &storms + notices));
}

#[test]
fn the_schema_of_refusals_has_their_fields_and_no_others() {
    let refusal = Refusal { error: "limit is \"x\"; it must be a whole number".into(), parameter: "limit".into() };
    check("error", &of::<Refusal>("the answer to a request that is wrong"), &line(&refusal));
}
