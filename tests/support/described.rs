//! What the program says about its own words, and whether it keeps to it: every frame that a test
//! is sent is held against docs/asyncapi.json.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

/// The document, as it is served.
pub static ASYNCAPI: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../docs/asyncapi.json")).expect("it is JSON")
});

/// Who says something, as the server sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    ByServer,
    ByPeer,
}

type Words = BTreeMap<(String, Said, String), Validator>;

/// A validator for each address, side and type.
static WORDS: LazyLock<Words> = LazyLock::new(|| {
    let mut words = BTreeMap::new();
    for operation in ASYNCAPI["operations"].as_object().expect("operations").values() {
        let said = match operation["action"].as_str() {
            Some("send") => Said::ByServer,
            _ => Said::ByPeer,
        };
        let channel = at(&ASYNCAPI, &operation["channel"]);
        let address = channel["address"].as_str().expect("an address").to_owned();
        for message in operation["messages"].as_array().expect("messages") {
            let message = at(&ASYNCAPI, at(&ASYNCAPI, message));
            let kind = message["name"].as_str().expect("a name").to_owned();
            assert_eq!(message["payload"]["properties"]["type"], json!({"const": kind}));
            let validator = jsonschema::validator_for(&message["payload"]).expect("a schema");
            words.insert((address.clone(), said, kind), validator);
        }
    }
    words
});

/// What a reference of a document points at; what is none is itself.
pub fn at<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(pointer) => at(document, document.pointer(&pointer[1..]).expect("a target")),
        None => value,
    }
}

/// Fails if a frame on the WebSocket at `path` is not as described.
#[track_caller]
pub fn hold_to_it(path: &str, said: Said, frame: &Value) {
    let path = path.split('?').next().unwrap_or_default();
    let kind = frame["type"].as_str().unwrap_or_default().to_owned();
    let key = (path.to_owned(), said, kind);
    if !["/ws/session", "/ws/node", "/v1/stream"].contains(&path) {
        return;
    }
    let Some(validator) = WORDS.get(&key) else { panic!("not described: {key:?} {frame}") };
    let faults: Vec<String> = validator
        .iter_errors(frame)
        .map(|fault| format!("{fault} at {}", fault.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{key:?}: {faults:?}\n{frame}");
}

/// The other document.
pub static OPENAPI: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../docs/openapi.json")).expect("it is JSON")
});

/// A validator for each path, method and status whose body is described as JSON; none where it is
/// described as something else.
static ANSWERS: LazyLock<BTreeMap<(String, String, u16), Option<Validator>>> =
    LazyLock::new(|| {
        let mut answers = BTreeMap::new();
        for (path, methods) in OPENAPI["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
                    let schema = &at(&OPENAPI, answer)["content"]["application/json"]["schema"];
                    let whole = json!({"components": OPENAPI["components"], "allOf": [schema]});
                    let validator = schema.is_object().then(|| jsonschema::validator_for(&whole));
                    let validator = validator.map(|made| made.expect("a schema"));
                    let key = (path.clone(), method.to_uppercase(), status.parse().unwrap());
                    answers.insert(key, validator);
                }
            }
        }
        answers
    });

/// Whether a path is one that is described so, with names in braces.
pub fn is_of(path: &str, described: &str) -> bool {
    let (mut ours, mut theirs) = (path.split('/'), described.split('/'));
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return true,
            (Some(_), Some(name)) if name.starts_with('{') => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Fails if the answer to a request is not as described. What asks for no page, or in a way that a
/// page does not know, is not described.
#[track_caller]
pub fn hold_answer_to_it(method: &str, path: &str, status: u16, body: &str) {
    if status == 400 && body.is_empty() {
        // What is no HTTP is answered below the pages.
        return;
    }
    let path = path.split('?').next().unwrap_or_default();
    let paths = OPENAPI["paths"].as_object().expect("paths");
    let Some((described, methods)) = paths.iter().find(|(described, _)| is_of(path, described))
    else {
        return;
    };
    if !methods[method.to_lowercase()].is_object() {
        return;
    }
    let key = (described.clone(), method.to_owned(), status);
    let Some(validator) = ANSWERS.get(&key) else { panic!("not described: {key:?} {body}") };
    let Some(validator) = validator else { return };
    let body: Value = serde_json::from_str(body).expect("it is JSON");
    let faults: Vec<String> = validator
        .iter_errors(&body)
        .map(|fault| format!("{fault} at {}", fault.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{key:?}: {faults:?}\n{body}");
}
