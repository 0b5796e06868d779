//! Log lines about a store file that is moved or replaced while it is open.
//!
//! This test has its own process, because it installs the log subscriber of the process: the store logs from
//! threads of its own.
#![allow(clippy::unwrap_used, reason = "a test panics on failure")]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyward::node::FollowOptions;
use keyward::policy::Policy;
use keyward::store::{KeyQuery, KeyStore, SqliteStore, StoreError};
use keyward::{ManualClock, profiles};
use support::*;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self, words: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let found = text.lines().filter(|line| line.contains(words));
        found.map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Moves a store file with its log.
fn move_store(from: &Path, to: &Path) {
    for end in ["", "-wal", "-shm"] {
        let name = |path: &Path| format!("{}{end}", path.display());
        if fs::exists(name(from)).unwrap() {
            fs::rename(name(from), name(to)).unwrap();
        }
    }
}

fn with_sources(error: &StoreError) -> String {
    let source = error.source().map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

#[test]
fn a_moved_or_replaced_file_is_logged_once_with_its_path_and_the_next_step() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(log.clone())
        .with_ansi(false)
        .init();
    let folder = tempfile::tempdir().unwrap();
    let [path, away, backup, restored] =
        ["keys.db", "away.db", "backup.db", "restored.db"].map(|name| folder.path().join(name));
    let clock = Arc::new(ManualClock::at(at(START)));
    let store = wait(SqliteStore::open(&path)).unwrap();
    let keys = node(
        store.clone(),
        &clock,
        Policy::new(profiles::standard()).unwrap(),
    );
    wait(keys.create(&admin(), reader("first"))).unwrap();
    wait(store.backup(&backup)).unwrap();
    wait(SqliteStore::restore(&backup, &restored)).unwrap();
    let read = || wait(store.list(&KeyQuery::all(at(START))));
    let shown = path.display().to_string();

    move_store(&path, &away);
    for _ in 0..3 {
        let error = with_sources(&read().unwrap_err());
        assert!(
            error.contains(&shown) && error.contains("move it back"),
            "{error}"
        );
    }
    let lines = log.lines("was moved or removed");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("WARN") && lines[0].contains(&shown),
        "{lines:?}"
    );

    move_store(&away, &path);
    read().unwrap();
    read().unwrap();
    assert_eq!(log.lines("is back").len(), 1);

    move_store(&path, &away);
    read().unwrap_err();
    assert_eq!(log.lines("was moved or removed").len(), 2);
    fs::rename(&restored, &path).unwrap();
    let error = with_sources(&read().unwrap_err());
    assert!(error.contains("keyctl recover"), "{error}");
    read().unwrap_err();
    assert_eq!(log.lines("is back").len(), 1);
    let lines = log.lines("was replaced by another file");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("keyctl recover") && lines[0].contains(&shown),
        "{lines:?}"
    );

    // The lines before and at the beginning of a refusal have the whole cause too.
    for (after, words) in [(6, "keys will be refused"), (5, "keys are refused")] {
        clock.advance(Duration::from_secs(after));
        for _ in 0..3 {
            wait(keys.sync()).unwrap_err();
        }
        let lines = log.lines(words);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("ERROR") && lines[0].contains("keyctl recover"),
            "{lines:?}"
        );
        assert!(lines[0].contains(&shown), "{lines:?}");
    }

    // A node that follows the store logs the cause, not only that the store is unavailable.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(async {
        let follower = keys.follow(FollowOptions::default()).unwrap();
        follower.watch().changed().await.unwrap();
        assert_eq!(follower.status().failures, 1);
        follower.stop().await;
    });
    let lines = log.lines("could not follow the store");
    assert!(
        lines[0].contains(&shown) && lines[0].contains("keyctl recover"),
        "{lines:?}"
    );
}
