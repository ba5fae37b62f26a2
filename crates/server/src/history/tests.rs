//! History without a server around it.

use super::*;

fn history(dir: &Path, config: HistoryConfig) -> History {
    let content = ContentStore::open(dir.join("content")).unwrap();
    History::open(&dir.join("history.db"), content, config).unwrap()
}

fn finish(history: &History, name: &str, at_seconds: i64) {
    finish_with(history, name, at_seconds, None);
}

fn finish_with(history: &History, name: &str, at_seconds: i64, error: Option<&Error>) {
    let at = Some(timestamp(Timestamp::from_second(at_seconds).unwrap()));
    let mut record = BuildHistoryRecord {
        created_at: at,
        ..new_record(name)
    };
    history.start(record.clone()).unwrap();
    record.completed_at = at;
    let vertex = progress::Vertex::new(Digest::of(name), name);
    let ended = Ended {
        error,
        events: &[Arc::new(SolveStatus::of_vertexes(vec![vertex]))],
    };
    history.complete(record, ended).unwrap();
}

fn early() -> BuildHistoryRequest {
    BuildHistoryRequest {
        early_exit: true,
        ..BuildHistoryRequest::default()
    }
}

async fn refs(history: &History, request: BuildHistoryRequest) -> Vec<String> {
    let events = history.listen(request).unwrap();
    events
        .map(|event| event.unwrap().record.unwrap().r#ref)
        .collect()
        .await
}

#[tokio::test]
async fn a_finished_build_is_listed_and_replayed_by_a_later_server() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::now().as_second();
    finish(&history(dir.path(), HistoryConfig::default()), "a", now);
    let again = history(dir.path(), HistoryConfig::default());
    assert_eq!(refs(&again, early()).await, ["a"]);
    let other = BuildHistoryRequest {
        r#ref: "b".into(),
        ..early()
    };
    assert!(refs(&again, other).await.is_empty());
    let said: Vec<_> = again.status("a").unwrap().unwrap().collect();
    assert_eq!(said[0].as_ref().unwrap().vertexes[0].name, "a");
    assert_eq!(again.blobs().unwrap().len(), 1);
    again.finalize("a").await;
    again.delete("a").unwrap();
    assert!(again.get("a").unwrap().is_none() && again.status("a").unwrap().is_none());
    let gone = again.delete("a").unwrap_err();
    assert_eq!(gone.to_string(), "lease \"ref_a\": not found");
    let gone = again.pin("a", true).unwrap_err();
    assert_eq!(
        gone.to_string(),
        "failed to retrieve ref a: file does not exist"
    );
}

#[tokio::test]
async fn old_records_go_when_there_are_enough_newer_ones() {
    let dir = tempfile::tempdir().unwrap();
    let config = HistoryConfig {
        max_age: crate::config::Span::from_secs(60),
        max_entries: 1,
    };
    let history = history(dir.path(), config);
    let now = Timestamp::now().as_second();
    finish(&history, "old", now - 1000);
    assert!(history.get("old").unwrap().is_some());
    finish(&history, "pinned", now - 999);
    assert!(history.get("old").unwrap().is_none());
    history.pin("pinned", true).unwrap();
    finish(&history, "new", now);
    assert!(history.get("pinned").unwrap().is_some());
}

#[tokio::test]
async fn listeners_hear_of_builds_as_they_start_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path(), HistoryConfig::default());
    let mut live = Box::pin(history.listen(BuildHistoryRequest::default()).unwrap());
    finish(&history, "a", 1);
    history.delete("a").unwrap();
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(live.next().await.unwrap().unwrap().r#type);
    }
    assert_eq!(kinds, [0, 1, 2]);
}

#[tokio::test]
async fn a_listener_that_is_too_slow_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path(), HistoryConfig::default());
    let mut live = Box::pin(history.listen(BuildHistoryRequest::default()).unwrap());
    for _ in 0..=EVENTS_MAX {
        history.tell(BuildHistoryEventType::Started, only_ref("a"));
    }
    let error = live.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert!(live.next().await.is_none());
}

#[tokio::test]
async fn the_newest_come_first_and_a_limit_leaves_out_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path(), HistoryConfig::default());
    for (name, at) in [("a", 10), ("c", 30), ("b", 20)] {
        finish(&history, name, at);
    }
    history.start(new_record("running")).unwrap();
    let limited = BuildHistoryRequest {
        limit: 2,
        ..early()
    };
    assert_eq!(refs(&history, limited).await, ["running", "c", "b"]);
    let active = BuildHistoryRequest {
        active_only: true,
        ..early()
    };
    assert_eq!(refs(&history, active).await, ["running"]);
    let negative = BuildHistoryRequest {
        limit: -1,
        ..early()
    };
    assert!(history.listen(negative).is_err());
    let error = history.delete("running").unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[test]
fn a_failed_build_keeps_its_error_with_all_details() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path(), HistoryConfig::default());
    let error = Error::invalid("boom").vertex(Digest::of("v").to_string());
    finish_with(&history, "a", 1, Some(&error));
    let record = history.get("a").unwrap().unwrap();
    let brief = record.error.unwrap();
    assert_eq!((brief.message.as_str(), brief.details.len()), ("boom", 0));
    let digest = digest_of(&record.external_error.unwrap()).unwrap();
    let bytes = history.content.read(&digest).unwrap();
    let whole = proto::rpc::Status::decode(bytes.as_slice()).unwrap();
    assert!(!whole.details.is_empty());
    assert!(history.blobs().unwrap().contains(&digest));
}

#[test]
fn a_build_that_ran_when_its_server_ended_is_recorded_as_failed() {
    let dir = tempfile::tempdir().unwrap();
    let first = history(dir.path(), HistoryConfig::default());
    first.start(new_record("cut")).unwrap();
    drop(first);
    let second = history(dir.path(), HistoryConfig::default());
    let record = second.get("cut").unwrap().unwrap();
    assert!(record.completed_at.is_some());
    assert_eq!(record.error.unwrap().code, Code::Unknown as i32);
    assert_eq!(second.status("cut").unwrap().unwrap().count(), 0);
    drop(second);
    let third = history(dir.path(), HistoryConfig::default());
    assert_eq!(third.get("cut").unwrap().unwrap().generation, 1);
}

#[test]
fn results_that_are_not_here_are_not_named_and_images_are_kept_whole() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path(), HistoryConfig::default());
    let config = history.content.put(b"{}").unwrap();
    let manifest =
        format!(r#"{{"config":{{"mediaType":"x","digest":"{config}","size":2}},"layers":[]}}"#);
    let manifest = history.content.put(manifest.as_bytes()).unwrap();
    let mut record = new_record("a");
    record.result = Some(BuildResultInfo {
        results: HashMap::from([
            (0, history.describe(Digest::of("elsewhere"), "x")),
            (1, history.describe(manifest, "x")),
        ]),
        ..BuildResultInfo::default()
    });
    let ended = Ended {
        error: None,
        events: &[],
    };
    history.complete(record, ended).unwrap();
    let kept = history.get("a").unwrap().unwrap();
    let numbers: Vec<_> = kept.result.unwrap().results.into_keys().collect();
    assert_eq!(numbers, [1]);
    let blobs = history.blobs().unwrap();
    assert!(blobs.contains(&manifest) && blobs.contains(&config));
}

#[tokio::test]
async fn a_trace_comes_after_its_record_and_can_be_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let history = Arc::new(history(dir.path(), HistoryConfig::default()));
    finish(&history, "a", 1);
    let (slot, dropped) = (history.trace_slot("a"), history.trace_slot("b"));
    let finalized = history.finalize("a");
    let mut finalized = std::pin::pin!(finalized);
    assert!(futures::poll!(finalized.as_mut()).is_pending());
    slot.fill(b"{}").unwrap();
    finalized.await;
    let record = history.get("a").unwrap().unwrap();
    assert_eq!((record.generation, record.trace.is_some()), (2, true));
    drop(dropped);
    history.finalize("b").await;
    assert_eq!(history.blobs().unwrap().len(), 2);
}
