//! The main job: speech from a speaker to a node and back.

mod support;

use std::time::{Duration, Instant};

use support::{TestServer, speech};

#[tokio::test(flavor = "multi_thread")]
async fn two_sentences_are_answered_in_order_and_dispatched_at_once() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    for (index, text) in ["one", "two"].into_iter().enumerate() {
        client.chunk(&id, 0, &speech(256), false).await;
        let marked = Instant::now();
        client.chunk(&id, 1, &[], true).await;
        let job = node.assignment().await;
        assert!(marked.elapsed() < Duration::from_millis(50), "{:?}", marked.elapsed());
        assert_eq!(job["utterance_index"], index);
        assert_eq!(job["is_manual_cut"], true);
        node.answer(&job, text).await;
        let result = client.expect("translation_result").await;
        assert_eq!(result["utterance_index"], index);
        assert_eq!(result["text_asr"], text);
        assert_eq!(result["session_id"], id.as_str());
    }
}
