//! `verify-audit-chain` as an auditor runs it: on a stopped Gatehouse's data, honest and tampered with.

use std::path::{Path, PathBuf};

use gatehouse_audit::domain::checkpoint::Checkpoint;
use gatehouse_audit::domain::digest::Digest;
use gatehouse_audit::domain::merkle::{Frontier, leaf_hash};
use gatehouse_db::{DatabaseUrl, Db, Sql, Value, params, run_tx, sql};
use gatehouse_testkit::eventually;

use crate::output::{full, unread};
use crate::support::{Ended, Gatehouse, PATIENCE, ended, folder, program};

sql! {
    DROP_INDEX = "DROP INDEX audit_logs_by_place";
    FAR_EVENT = "INSERT INTO audit_events (log, seq, event_id, recorded_at, leaf, payload)
        SELECT $1, 1000000000, randomblob(16), recorded_at, leaf, payload FROM audit_events
        WHERE log = 'default' AND seq = 2";
    SECOND_ROW = "INSERT INTO audit_logs (tenant_id, occurred_at, event_id, log, seq, recorded_at, service, action, outcome,
        actor) SELECT tenant_id, occurred_at + 1, event_id, log, seq, recorded_at, service, 'forged.action', outcome, actor
        FROM audit_logs WHERE log = 'default' AND seq = 2";
    LEAVES = "SELECT leaf FROM audit_events WHERE log = 'default' ORDER BY seq";
    CHANGE = "UPDATE audit_events SET leaf = $1 WHERE log = 'default' AND seq = 2";
    DELETE = "DELETE FROM audit_events WHERE log = 'default' AND seq = 2";
    INSERT = "INSERT INTO audit_events (log, seq, event_id, recorded_at, leaf, payload)
        SELECT log, $1, randomblob(16), recorded_at, leaf, payload FROM audit_events WHERE log = 'default' AND seq = 2";
    GROW_HEAD = "UPDATE audit_heads SET size = size + 1 WHERE log = 'default'";
    CUT_EVENTS = "DELETE FROM audit_events WHERE log = 'default' AND seq >= 3";
    CUT_ROWS = "DELETE FROM audit_logs WHERE log = 'default' AND seq >= 3";
    CUT_HEAD = "UPDATE audit_heads SET size = 3, chain = $1 WHERE log = 'default'";
    DELETE_HEAD = "DELETE FROM audit_heads";
    NO_EVENTS = "DELETE FROM audit_events";
    NO_ROWS = "DELETE FROM audit_logs";
    NO_TILES = "DELETE FROM audit_tiles";
    NO_CHECKPOINTS = "DELETE FROM audit_checkpoints";
    PRUNE_EVENTS = "DELETE FROM audit_events WHERE log = 'default' AND seq < 2";
    PRUNE_ROWS = "DELETE FROM audit_logs WHERE log = 'default' AND seq < 2";
    PRUNE_HEAD = "UPDATE audit_heads SET first_seq = 2, first_chain = $1, pruned_note = $2 WHERE log = 'default'";
}

/// Exit status and words.
type Expected<'a> = (i32, &'a str);

const NOT_PROVEN: Expected<'_> = (3, "tail not proven: give a checkpoint");

/// The data of a Gatehouse that has stopped, and what somebody kept of it elsewhere.
struct Kept {
    place: tempfile::TempDir,
    checkpoint: PathBuf,
    key: PathBuf,
    leaves: Vec<Vec<u8>>,
}

impl Kept {
    async fn new() -> Self {
        let place = folder();
        let gatehouse = Gatehouse::start(place.path()).await;
        let account = gatehouse.account("ada").await;
        gatehouse.account("eve").await;
        eventually(PATIENCE, || async {
            let (_, logs) = account.get("/v1/audit/logs").await;
            logs["logs"][0]["size"].as_i64().is_some_and(|size| size >= 4)
        })
        .await;
        let (status, answer) = account.get("/v1/audit/logs/default/checkpoint?fresh=true").await;
        assert_eq!(status, 200, "{answer}");
        let (checkpoint, key) = (place.path().join("checkpoint"), place.path().join("key"));
        std::fs::write(&checkpoint, answer["checkpoint"].as_str().unwrap()).unwrap();
        std::fs::write(&key, format!("{}\n", answer["verifier_key"].as_str().unwrap())).unwrap();
        assert!(gatehouse.stop().await.success());
        let db = open(&place.path().join("data")).await;
        let rows = run_tx!(db, "test.leaves", |tx| { tx.fetch_all(&LEAVES, params![]).await }).unwrap();
        let leaves = rows.iter().map(|row| row.get("leaf").unwrap()).collect();
        db.close().await;
        Self { place, checkpoint, key, leaves }
    }

    /// A copy of the data with `changes` made to it.
    async fn tampered(&self, name: &str, changes: &[(&Sql, Vec<Value>)]) -> PathBuf {
        let copy = self.place.path().join(name);
        std::fs::create_dir_all(copy.join("audit")).unwrap();
        for file in std::fs::read_dir(self.place.path().join("data/audit")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.join("audit").join(file.file_name())).unwrap();
        }
        let db = open(&copy).await;
        run_tx!(db, "test.tamper", |tx| {
            for (sql, values) in changes {
                let rows = tx.execute(sql, values.clone()).await?;
                assert!(rows > 0 || sql.name() == DROP_INDEX.name(), "{} changed nothing", sql.name());
            }
            Ok(())
        })
        .unwrap();
        db.close().await;
        copy
    }

    async fn verify(&self, data: &Path, with_checkpoint: bool, with_key: bool) -> Ended {
        let mut command = program();
        command.arg("verify-audit-chain").arg("--data").arg(data);
        if with_checkpoint {
            command.arg("--checkpoint").arg(&self.checkpoint);
        }
        if with_key {
            command.arg("--verifier-key-file").arg(&self.key);
        }
        ended(&mut command).await
    }

    /// What the command says of a copy with `changes`: with checkpoint and key, with the checkpoint, with neither.
    async fn check(&self, name: &str, changes: &[(&Sql, Vec<Value>)], expected: [Expected<'_>; 3]) {
        let data = self.tampered(name, changes).await;
        for ((checkpoint, key), (code, words)) in
            [(true, true), (true, false), (false, false)].into_iter().zip(expected)
        {
            let found = self.verify(&data, checkpoint, key).await;
            assert_eq!(found.code, Some(code), "{name}: {found:?}");
            assert!(
                found.stdout.starts_with("log default: ") && found.stdout.contains(words),
                "{name}: {found:?}"
            );
        }
    }
}

async fn open(data: &Path) -> Db {
    let url = DatabaseUrl::sqlite(&data.join("audit/audit.db"));
    Db::connect(&gatehouse_db::Config { url, ..gatehouse_db::Config::default() }, "audit").await.unwrap()
}

#[tokio::test]
async fn the_command_finds_every_way_to_tamper_with_a_log() {
    let kept = Kept::new().await;
    let chain = |seq: usize| *Digest::of_chain(&kept.leaves[seq]).as_bytes();
    let size = kept.leaves.len();
    kept.check("honest", &[], [(0, "verified"), (0, "verified"), NOT_PROVEN]).await;

    let mut changed = kept.leaves[2].clone();
    changed[20] ^= 1;
    let at_2 = [(1, "BROKEN at entry 2: "); 3];
    kept.check("changed", &[(&CHANGE, params![changed])], at_2).await;
    kept.check("deleted", &[(&DELETE, params![])], at_2).await;
    let words = format!("BROKEN at entry {size}: ");
    let inserted = [(&INSERT, params![i64::try_from(size).unwrap()]), (&GROW_HEAD, params![])];
    kept.check("inserted", &inserted, [(1, &words); 3]).await;

    let cut = [(&CUT_EVENTS, params![]), (&CUT_ROWS, params![]), (&CUT_HEAD, params![chain(2)])];
    let at_3 = (1, "BROKEN at entry 3: ");
    kept.check("cut", &cut, [at_3, at_3, NOT_PROVEN]).await;

    let at_0 = (1, "BROKEN at entry 0: ");
    kept.check("headless", &[(&DELETE_HEAD, params![])], [at_0; 3]).await;
    let all = [&DELETE_HEAD, &NO_EVENTS, &NO_ROWS, &NO_TILES, &NO_CHECKPOINTS].map(|sql| (sql, params![]));
    kept.check("emptied", &all, [at_0; 3]).await;

    let far = [(1, "BROKEN at entry 1000000000: it lies beyond the end"); 3];
    kept.check("beyond", &[(&FAR_EVENT, params!["default"])], far).await;
    let twice = [(1, "BROKEN at entry 2: several plain rows"); 3];
    kept.check("twice", &[(&DROP_INDEX, params![]), (&SECOND_ROW, params![])], twice).await;

    let mut frontier = Frontier::empty();
    kept.leaves[..2].iter().for_each(|leaf| frontier.push(leaf_hash(leaf)));
    let statement = Checkpoint { origin: "anything".into(), size: 2, root: frontier.root() }.to_string();
    let pruned =
        [(&PRUNE_EVENTS, params![]), (&PRUNE_ROWS, params![]), (&PRUNE_HEAD, params![chain(1), statement])];
    let prefix = (3, "prefix not proven: give --verifier-key");
    kept.check("forged prefix", &pruned, [at_0, prefix, prefix]).await;
    rows_of_no_log(&kept).await;
    a_checkpoint_as_shells_and_mail_leave_it(&kept).await;
    nobody_reads_it(&kept).await;
    a_foreign_checkpoint(&kept).await;
}

/// Under a name of the forger's own, which a terminal would show as another line.
async fn rows_of_no_log(kept: &Kept) {
    let data = kept.tampered("named", &[(&FAR_EVENT, params!["x\nlog default: all is well"])]).await;
    let found = kept.verify(&data, true, true).await;
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(found.stdout.contains("log default: ") && found.stdout.contains("verified to "), "{found:?}");
    let told = "log x\\nlog default: all is well: 0 entries kept of 0";
    assert!(
        found.stdout.contains(told) && found.stdout.contains("which the service gives no log"),
        "{found:?}"
    );
}

/// `jq -r` adds a newline, `$(…)` takes the last one away, and mail has carriage returns.
async fn a_checkpoint_as_shells_and_mail_leave_it(kept: &Kept) {
    let data = kept.tampered("kept otherwise", &[]).await;
    let note = std::fs::read_to_string(&kept.checkpoint).unwrap();
    for text in [format!("{note}\n"), note.trim_end().to_owned(), note.replace('\n', "\r\n")] {
        let file = kept.place.path().join("checkpoint kept otherwise");
        std::fs::write(&file, &text).unwrap();
        let mut command = program();
        command.arg("verify-audit-chain").arg("--data").arg(&data);
        command.arg("--checkpoint").arg(&file).arg("--verifier-key-file").arg(&kept.key);
        let found = ended(&mut command).await;
        assert_eq!(found.code, Some(0), "{text:?}: {found:?}");
    }
}

/// The status is what scripts go by: it does not depend on who reads the words.
async fn nobody_reads_it(kept: &Kept) {
    let broken = kept.tampered("unread", &[(&DELETE, params![])]).await;
    let honest = kept.tampered("unread honest", &[]).await;
    for (data, code) in [(&broken, 1), (&honest, 0)] {
        for (stdout, complaint) in [(unread(), None), (full(), Some("No space left on device"))] {
            let mut command = program();
            command.arg("verify-audit-chain").arg("--data").arg(data);
            command.arg("--checkpoint").arg(&kept.checkpoint).arg("--verifier-key-file").arg(&kept.key);
            let found = crate::output::ended(&mut command, stdout).await;
            assert_eq!(found.code, Some(code), "{found:?}");
            assert!(
                complaint.map_or(found.stderr.is_empty(), |words| found.stderr.contains(words)),
                "{found:?}"
            );
        }
    }
}

/// Without the key, the configuration tells that a checkpoint is of somewhere else.
async fn a_foreign_checkpoint(kept: &Kept) {
    let data = kept.tampered("foreign", &[]).await;
    for (origin, code, words) in
        [("other.example", Some(2), "another installation"), ("gatehouse.invalid", Some(0), "verified to ")]
    {
        let mut command = program();
        command.env("GATEHOUSE_AUDIT__ORIGIN", origin).arg("verify-audit-chain").arg("--data").arg(&data);
        let found = ended(command.arg("--checkpoint").arg(&kept.checkpoint)).await;
        assert_eq!(found.code, code, "{found:?}");
        assert!(found.stdout.contains(words) || found.stderr.contains(words), "{found:?}");
    }
}

#[tokio::test]
async fn where_nothing_says_where_the_log_is_it_is_asked_for() {
    let refused = crate::support::run(&["verify-audit-chain"]).await.refusal();
    for word in ["--data", "databases.audit.url", "GATEHOUSE_DATABASES__AUDIT__URL"] {
        assert!(refused.contains(word), "{refused}");
    }
}

#[tokio::test]
async fn where_no_log_was_ever_nothing_is_verified() {
    let place = folder();
    let data = place.path().to_str().unwrap();
    let verify = ["verify-audit-chain", "--data", data];
    let refused = crate::support::run(&verify).await.refusal();
    assert!(refused.contains("there is no audit log here"), "{refused}");
    std::fs::create_dir(place.path().join("audit")).unwrap();
    std::fs::write(place.path().join("audit/audit.db"), "").unwrap();
    let refused = crate::support::run(&verify).await.refusal();
    assert!(refused.contains("There is no audit log here"), "{refused}");
}
