use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::status::{self, Status};

/// A gateway without volumes.
fn desk() -> Arc<Desk> {
    let status = || Status { volumes: Vec::new() };
    Arc::new(Desk { status: Box::new(status), comparers: HashMap::new() })
}

/// What is answered to these bytes; the client sends no more.
async fn answered(folder: &std::path::Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(folder.join(status::SOCKET)).await.unwrap();
    let _ = stream.write_all(bytes).await;
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn every_request_is_answered_and_nothing_ends_the_desk() {
    let folder = tempfile::tempdir().unwrap();
    let desk = tokio::spawn(answer(status::listen(folder.path()).unwrap(), desk()));
    let status = r#"{"volumes":[]}"#;
    assert_eq!(answered(folder.path(), b"").await, status, "silence asks for the status");
    assert_eq!(answered(folder.path(), b"{\"request\":\"status\"}\n").await, status);
    let long = [vec![b'['; 100_000], vec![b'\n']].concat();
    for wrong in [&b"status\n"[..], b"{\"request\":\"stop\"}\n", b"{\"request\":\"compare\"}\n", &long] {
        let answer = answered(folder.path(), wrong).await;
        assert!(answer.is_empty() || answer.contains("this is no request"), "{answer}");
    }
    // Clients that say nothing hold up nobody.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(UnixStream::connect(folder.path().join(status::SOCKET)).await.unwrap());
    }
    assert_eq!(status::ask(folder.path()).await.unwrap(), Status { volumes: Vec::new() });
    let refused = compare(folder.path(), "disk9", true, |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("no volume \"disk9\""), "{refused}");
    desk.abort();
}

#[test]
fn the_lines_are_what_they_are_documented_to_be() {
    let request = Request::Compare { volume: "disk0".to_owned(), repair: true };
    let text = r#"{"request":"compare","volume":"disk0","repair":true}"#;
    assert_eq!(serde_json::to_string(&request).unwrap(), text);
    assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
    assert_eq!(serde_json::to_string(&Request::Status).unwrap(), r#"{"request":"status"}"#);
    let mut found = Outcome { compared: 1 << 60, ..Outcome::default() };
    found.different.append((0..LISTED_MAX as u64 + 5).map(|at| Span::at((1 << 62) + at * 1024, 512)).collect());
    let comparison = Comparison::from(found);
    assert_eq!((comparison.ranges.len(), comparison.unlisted), (LISTED_MAX, 5));
    let line = serde_json::to_string(&Line::Compared(comparison)).unwrap();
    assert!((line.len() as u64) < LINE_MAX, "{} bytes", line.len());
}
