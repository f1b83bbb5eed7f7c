//! What can be asked for over HTTP.

/// Every path, in which `{}` stands for one segment, with the methods it takes. They are described
/// in docs/openapi.json, the WebSockets in docs/asyncapi.json.
pub const PATHS: &[(&str, &[&str])] = &[
    ("/ws/session", &["GET"]),
    ("/ws/node", &["GET"]),
    ("/v1/stream", &["GET"]),
    ("/v1/speech/translate", &["POST"]),
    ("/openapi.json", &["GET"]),
    ("/asyncapi.json", &["GET"]),
    ("/console", &["GET"]),
    ("/console/{}", &["GET"]),
    ("/api/v1/console/{}", &["GET"]),
    ("/health", &["GET"]),
    ("/readyz", &["GET"]),
    ("/metrics", &["GET"]),
    ("/api/v1/session-tokens", &["POST"]),
    ("/api/v1/stats", &["GET"]),
    ("/api/v1/usage", &["GET"]),
    ("/api/v1/sessions", &["GET"]),
    ("/api/v1/sessions/{}", &["GET"]),
    ("/api/v1/explain", &["GET"]),
    ("/api/v1/rooms", &["GET"]),
    ("/api/v1/jobs", &["GET"]),
    ("/api/v1/jobs/{}", &["GET"]),
    ("/api/v1/nodes", &["GET"]),
    ("/api/v1/nodes/{}", &["GET"]),
    ("/api/v1/nodes/{}/drain", &["POST"]),
    ("/api/v1/nodes/{}/undrain", &["POST"]),
    ("/api/v1/nodes/{}/pairing-codes", &["POST"]),
    ("/api/v1/pools", &["GET", "PUT", "DELETE"]),
    ("/api/v1/pools/{}", &["GET", "PUT", "DELETE"]),
    ("/api/v1/config", &["GET"]),
    ("/api/v1/config/reload", &["POST"]),
    ("/api/v1/drain", &["POST"]),
    ("/api/v1/backup", &["POST"]),
    ("/api/v1/log-level", &["GET", "PUT"]),
    ("/api/v1/keys", &["GET", "POST"]),
    ("/api/v1/keys/{}", &["DELETE"]),
    ("/api/v1/dead-letters", &["GET"]),
    ("/api/v1/dead-letters/{}", &["GET", "DELETE"]),
    ("/api/v1/dead-letters/{}/resend", &["POST"]),
    ("/api/v1/dead-letters/{}/audio", &["GET"]),
    ("/api/v1/tls/reload", &["POST"]),
];

/// The methods that a path takes; none if there is no such path.
pub(super) fn methods_of(path: &str) -> Option<&'static [&'static str]> {
    let fits = |pattern: &str| {
        let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
        loop {
            match (pattern.next(), path.next()) {
                (None, None) => return true,
                (Some("{}"), Some(segment)) if !segment.is_empty() => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    };
    PATHS.iter().find(|(pattern, _)| fits(pattern)).map(|(_, methods)| *methods)
}

#[cfg(test)]
mod tests {
    use super::methods_of;

    #[test]
    fn a_path_is_found_whatever_it_names() {
        assert_eq!(methods_of("/api/v1/nodes/a%2Fb/drain"), Some(&["POST"][..]));
        assert_eq!(methods_of("/api/v1/pools"), Some(&["GET", "PUT", "DELETE"][..]));
        assert_eq!(methods_of("/api/v1/pools/"), None);
        assert_eq!(methods_of("/api/v1/nodes//drain"), None);
        assert_eq!(methods_of("/api/v1/nodes/a/b/drain"), None);
        assert_eq!(methods_of("/api/v1"), None);
    }
}
