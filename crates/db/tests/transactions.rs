//! Transactions keep their promises when they race, fail or are dropped.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use gatehouse_core::Entropy;
use gatehouse_db::{Db, Engine, Error, Migrations, Sql, migrations, params, read_tx, run_tx, sql};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinSet;

const MIGRATIONS: Migrations = migrations!["0001_init" =>
    "CREATE TABLE counters (id BIGINT PRIMARY KEY, value BIGINT NOT NULL);
     INSERT INTO counters (id, value) VALUES (1, 0);
     INSERT INTO counters (id, value) VALUES (2, 0);"];

sql! {
    ADD_COUNTER = "INSERT INTO counters (id, value) VALUES ($1, 0)";
    READ = "SELECT value FROM counters WHERE id = $1";
    INCREMENT = "UPDATE counters SET value = value + 1 WHERE id = $1";
    INCREMENT_IF = "UPDATE counters SET value = value + 1 WHERE id = $1 AND value = $2";
}

async fn value(db: &Db, id: i64) -> i64 {
    read_tx!(db, "test.read", |tx| { tx.fetch_one(&READ, params![id]).await?.get("value") }).unwrap()
}

const NO_TABLE: Sql = Sql::new("NO_TABLE", "INSERT INTO nowhere (id) VALUES ($1)");

both_engines! {
    migrations: MIGRATIONS;

    /// 8 tasks on two replicas, 50 increments each, each read and then made by a conditional statement: none lost, none
    /// failed. On SQLite no block even runs twice, since it holds the write lock from its start.
    async fn no_update_is_lost_under_concurrency(db: TestDb) {
        let replicas = [db.db().clone(), db.another_replica().await];
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            let db = replicas[task % 2].clone();
            tasks.spawn(async move {
                let (mut calls, mut runs, mut won) = (0_u32, 0_u32, 0_u64);
                while won < 50 {
                    calls += 1;
                    let changed = run_tx!(db, "test.increment", |tx| {
                        runs += 1;
                        let seen = tx.fetch_one(&READ, params![1_i64]).await?.get::<i64>("value")?;
                        tx.execute(&INCREMENT_IF, params![1_i64, seen]).await
                    });
                    won += changed.unwrap();
                }
                (calls, runs)
            });
        }
        for (calls, runs) in tasks.join_all().await {
            assert!(db.engine() == Engine::Postgres || calls == 50 && runs == 50, "{calls} calls, {runs} runs");
        }
        assert_eq!(value(&db, 1).await, 8 * 50);
    }

    /// Two transactions take the same two rows in opposite order. PostgreSQL ends one by its deadlock detector; on
    /// SQLite they queue. Either way both are done.
    async fn a_deadlock_is_run_again(db: TestDb) {
        let (barrier, runs) = (Arc::new(Barrier::new(2)), Arc::new(AtomicU32::new(0)));
        let increment = |first: i64, second: i64| {
            let (db, barrier, runs) = (db.db().clone(), Arc::clone(&barrier), Arc::clone(&runs));
            tokio::spawn(async move {
                run_tx!(db, "test.deadlock", |tx| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    tx.execute(&INCREMENT, params![first]).await?;
                    // Both hold their first row, where the engine lets them; a second run does not wait.
                    let _ = tokio::time::timeout(Duration::from_millis(300), barrier.wait()).await;
                    tx.execute(&INCREMENT, params![second]).await
                })
            })
        };
        let (one, two) = tokio::join!(increment(1, 2), increment(2, 1));
        one.unwrap().unwrap();
        two.unwrap().unwrap();
        assert_eq!((value(&db, 1).await, value(&db, 2).await), (2, 2));
        let expected = if db.engine() == Engine::Postgres { 3 } else { 2 };
        assert_eq!(runs.load(Ordering::SeqCst), expected);
    }

    async fn an_error_rolls_back_and_comes_out_unchanged(db: TestDb) {
        let refused: Result<(), Error> = run_tx!(db.db(), "test.refuse", |tx| {
            tx.execute(&INCREMENT, params![1_i64]).await?;
            Err(gatehouse_core::Error::failed_precondition("TOO_LATE", "It is too late.").into())
        });
        assert_eq!(gatehouse_core::Error::from(refused.unwrap_err()).reason(), "TOO_LATE");
        assert_eq!(value(&db, 1).await, 0);
    }

    /// The refresh token rule: what a refused call did must stay done.
    async fn a_refusal_that_is_a_value_commits(db: TestDb) {
        let outcome: Result<Result<(), &str>, Error> = run_tx!(db.db(), "test.refuse", |tx| {
            tx.execute(&INCREMENT, params![1_i64]).await?;
            Ok(Err("refused"))
        });
        assert_eq!(outcome.unwrap(), Err("refused"));
        assert_eq!(value(&db, 1).await, 1);
    }

    async fn a_swallowed_failure_does_not_commit(db: TestDb) {
        let outcome = run_tx!(db.db(), "test.swallow", |tx| {
            tx.execute(&INCREMENT, params![1_i64]).await?;
            let _ = tx.execute(&ADD_COUNTER, params![1_i64]).await;
            Ok(())
        });
        assert!(outcome.unwrap_err().to_string().contains("ADD_COUNTER"));
        assert_eq!(value(&db, 1).await, 0);
    }

    async fn a_statement_that_was_cut_off_does_not_commit(db: TestDb) {
        let outcome = run_tx!(db.db(), "test.cut_off", |tx| {
            tx.execute(&INCREMENT, params![1_i64]).await?;
            Ok(cut_off_after(1, tx.execute(&INCREMENT, params![1_i64])).await.is_some())
        });
        // SQLite may have answered at the first poll; then it was not cut off.
        let expected = match outcome {
            Ok(was_done) => { assert!(was_done); 2 }
            Err(error) => { assert!(error.to_string().contains("INCREMENT failed"), "{error}"); 0 }
        };
        eventually(Duration::from_secs(5), async || value(&db, 1).await == expected).await;
    }

    async fn unique_violations_are_told_from_others(db: TestDb) {
        let add = async |id: i64| run_tx!(db.db(), "test.add", |tx| { tx.execute(&ADD_COUNTER, params![id]).await });
        add(3).await.unwrap();
        let twice = add(3).await.unwrap_err();
        assert!(twice.is_unique_violation() && !twice.is_retryable() && !twice.is_unavailable(), "{twice}");
        let other = run_tx!(db.db(), "test.add", |tx| { tx.execute(&NO_TABLE, params![1_i64]).await }).unwrap_err();
        assert!(!other.is_unique_violation() && other.to_string().starts_with("NO_TABLE: "), "{other}");
    }

    async fn a_missing_row_is_told(db: TestDb) {
        let missing = read_tx!(db.db(), "test.read", |tx| { tx.fetch_one(&READ, params![99_i64]).await }).unwrap_err();
        assert!(missing.is_no_row());
        let none = read_tx!(db.db(), "test.read", |tx| { tx.fetch_optional(&READ, params![99_i64]).await }).unwrap();
        assert!(none.is_none());
    }

    async fn reading_sees_one_snapshot_and_can_not_write(db: TestDb) {
        let seen = read_tx!(db.db(), "test.snapshot", |tx| {
            let before = tx.fetch_one(&READ, params![1_i64]).await?.get::<i64>("value")?;
            run_tx!(db.db(), "test.increment", |tx| { tx.execute(&INCREMENT, params![1_i64]).await })?;
            Ok((before, tx.fetch_one(&READ, params![1_i64]).await?.get::<i64>("value")?))
        });
        assert_eq!(seen.unwrap(), (0, 0));
        assert!(read_tx!(db.db(), "test.write", |tx| { tx.execute(&INCREMENT, params![1_i64]).await }).is_err());
        assert_eq!(value(&db, 1).await, 1);
    }

    async fn a_dropped_transaction_rolls_back_and_holds_nothing(db: TestDb) {
        let (reached, held) = (Arc::new(Notify::new()), db.db().clone());
        let task = tokio::spawn({
            let reached = Arc::clone(&reached);
            async move {
                run_tx!(held, "test.dropped", |tx| {
                    tx.execute(&INCREMENT, params![1_i64]).await?;
                    reached.notify_one();
                    std::future::pending::<()>().await;
                    Ok(())
                })
            }
        });
        reached.notified().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        // Takes the row's lock (SQLite: the only writer), which the dropped one held.
        run_tx!(db.db(), "test.increment", |tx| { tx.execute(&INCREMENT, params![1_i64]).await }).unwrap();
        assert_eq!(value(&db, 1).await, 1);
    }

    /// Cuts reading and writing transactions off at 400 different moments, BEGIN and COMMIT included. Then no connection
    /// is inside a transaction, and every one of them still writes.
    async fn dropping_at_any_moment_leaves_no_transaction_open(db: TestDb) {
        let (entropy, cut) = (Entropy::seeded(11), Db::connect(db.config(), "cut").await.unwrap());
        let mut done = 0;
        for round in 0..400_u32 {
            // A connection lies ready, so that connecting is not all that is cut off.
            value(&cut, 1).await;
            let work = async {
                if round % 2 == 0 {
                    run_tx!(cut, "test.cut", |tx| { tx.execute(&INCREMENT, params![2_i64]).await }).map(drop)
                } else {
                    read_tx!(cut, "test.cut", |tx| { tx.fetch_one(&READ, params![2_i64]).await }).map(drop)
                }
            };
            done += u32::from(cut_off_after(entropy.below(8), work).await.is_some());
            // At once, since the next use of the connection could hide it.
            if db.engine() == Engine::Postgres {
                eventually(Duration::from_secs(5), async || idle_in_transaction(&db).await == 0).await;
            }
        }
        assert!((50..350).contains(&done), "{done} of 400 were not cut off: choose other moments");
        let mut tasks = JoinSet::new();
        for _ in 0..20 {
            let cut = cut.clone();
            tasks.spawn(async move {
                run_tx!(cut, "test.after", |tx| { tx.execute(&INCREMENT, params![1_i64]).await }).unwrap();
            });
        }
        tasks.join_all().await;
        assert_eq!(value(&db, 1).await, 20);
    }

    async fn a_closed_database_is_unavailable(db: TestDb) {
        let other = db.another_replica().await;
        other.ping().await.unwrap();
        other.close().await;
        assert!(other.ping().await.unwrap_err().is_unavailable());
        let refused = run_tx!(other, "test.closed", |tx| { tx.execute(&INCREMENT, params![1_i64]).await });
        assert_eq!(gatehouse_core::Error::from(refused.unwrap_err()).reason(), "DATABASE_UNAVAILABLE");
    }
}

/// Polls `work` at most `polls` times, then drops it; returns what it came to, if it got so far.
async fn cut_off_after<T>(polls: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn idle_in_transaction(db: &TestDb) -> i64 {
    const IDLE: Sql = Sql::new(
        "IDLE",
        "SELECT COUNT(*) AS idle FROM pg_stat_activity
         WHERE state LIKE 'idle in transaction%' AND application_name = 'gatehouse-cut'",
    );
    read_tx!(db.db(), "test.idle", |tx| { tx.fetch_one(&IDLE, params![]).await?.get("idle") }).unwrap()
}

/// PostgreSQL only: SQLite's writers queue, so nothing there can fail to serialize.
#[tokio::test(flavor = "multi_thread")]
async fn serialization_failures_are_run_again_but_not_for_ever() {
    const RAISE: Sql = Sql::new("RAISE", "SELECT raise_if($1) AS done");
    const FUNCTION: Migrations = migrations!["0001_init" =>
        "CREATE FUNCTION raise_if(fail BOOLEAN) RETURNS BOOLEAN LANGUAGE plpgsql AS
         $$ BEGIN IF fail THEN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END IF; RETURN TRUE; END $$"];
    let db = TestDb::postgres(&FUNCTION).await;
    let run = async |failures: u32| {
        let mut runs = 0;
        let result = run_tx!(db.db(), "test.raise", |tx| {
            runs += 1;
            tx.fetch_one(&RAISE, params![runs <= failures]).await.map(drop)
        });
        (runs, result)
    };
    let (runs, result) = run(3).await;
    assert_eq!(runs, 4);
    result.unwrap();
    let (runs, result) = run(u32::MAX).await;
    assert_eq!(runs, 10);
    let error = result.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(gatehouse_core::Error::from(error).reason(), "TRANSACTION_CONFLICT");
}

/// What a failover does to a pool: every connection in it dies while idle.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_died_idle_are_replaced_unnoticed() {
    const KILL: Sql = Sql::new(
        "KILL",
        "SELECT COUNT(pg_terminate_backend(pid)) AS killed FROM pg_stat_activity
         WHERE pid <> pg_backend_pid() AND application_name = 'gatehouse-victim'",
    );
    let db = TestDb::postgres(&MIGRATIONS).await;
    let victim = Db::connect(db.config(), "victim").await.unwrap();
    let fill = async || {
        let mut tasks = JoinSet::new();
        for _ in 0..10 {
            let db = victim.clone();
            tasks.spawn(async move { value(&db, 1).await });
        }
        tasks.join_all().await
    };
    fill().await;
    let killed =
        read_tx!(db.db(), "test.kill", |tx| { tx.fetch_one(&KILL, params![]).await?.get::<i64>("killed") });
    assert!(killed.unwrap() > 0);
    fill().await;
}

/// What a restart of the server does to a transaction under way: nothing was committed, so it runs again, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_connection_is_lost_before_its_commit_runs_again() {
    const DIE: Sql = Sql::new("DIE", "SELECT pg_terminate_backend(pg_backend_pid()) AS died");
    let db = TestDb::postgres(&MIGRATIONS).await;
    for (deaths, succeeds) in [(1, true), (2, false)] {
        let before = value(db.db(), 1).await;
        let runs = AtomicU32::new(0);
        let result = run_tx!(db.db(), "test.die", |tx| {
            tx.execute(&INCREMENT, params![1]).await?;
            if runs.fetch_add(1, Ordering::SeqCst) < deaths {
                tx.fetch_one(&DIE, params![]).await?;
            }
            Ok(())
        });
        assert_eq!(result.is_ok(), succeeds, "{result:?}");
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        assert_eq!(value(db.db(), 1).await, before + i64::from(succeeds));
    }
}
