//! What the program says about itself: docs/openapi.json and docs/asyncapi.json.

use bytes::Bytes;
use hyper::{Response, header};

use crate::transport::Body;

static OPENAPI: &[u8] = include_bytes!("../../docs/openapi.json");
static ASYNCAPI: &[u8] = include_bytes!("../../docs/asyncapi.json");

/// `/openapi.json`.
pub(super) fn openapi() -> Response<Body> {
    document(OPENAPI)
}

/// `/asyncapi.json`.
pub(super) fn asyncapi() -> Response<Body> {
    document(ASYNCAPI)
}

fn document(text: &'static [u8]) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from_static(text)));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
