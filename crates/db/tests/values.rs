//! Both engines take and give the same values.
#![expect(clippy::unwrap_used, reason = "a test")]

use gatehouse_core::ids::JobId;
use gatehouse_core::{Clock, Entropy, ErrorCode, Timestamp};
use gatehouse_db::{Migrations, Value, insert, migrations, params, read_tx, run_tx, sql};
use gatehouse_testkit::{TestDb, both_engines};
use uuid::Uuid;

const MIGRATIONS: Migrations = migrations!["0001_init" =>
    "CREATE TABLE things (
        id UUID PRIMARY KEY, number BIGINT, flag BOOLEAN, words TEXT, other UUID, bytes BYTEA
     )"];

sql! {
    ADD = "INSERT INTO things (id, number, flag, words, other, bytes) VALUES ($1, $2, $3, $4, $5, $6)";
    GET = "SELECT id, number, flag, words, other, bytes FROM things WHERE id = $1";
    COUNT = "SELECT COUNT(*) AS things, CAST(SUM(number) AS BIGINT) AS total, COUNT(*) > 0 AS some FROM things";
    FIND_BY_NULL = "SELECT COUNT(*) AS things FROM things WHERE words IS NOT DISTINCT FROM $1 AND flag = $2";
    ANY = "SELECT number, flag, words, other FROM things WHERE number = $1";
    RETURNING = "UPDATE things SET number = number + 1 WHERE id = $1 RETURNING number";
}

insert! {
    ADD_NEW = "INSERT INTO things"(id, number, flag, words, other, bytes) "ON CONFLICT (id) DO NOTHING";
    ADD_ALL = "INSERT INTO things"(id, number);
}

async fn round_trip(db: &TestDb, values: [Value; 5]) {
    let id = JobId::new(&Clock::system(), &Entropy::system());
    let shown = format!("{values:?}");
    run_tx!(db.db(), "test.add", |tx| {
        let mut all = params![id];
        all.extend(values.clone());
        tx.execute(&ADD, all).await
    })
    .unwrap();
    let row = read_tx!(db.db(), "test.get", |tx| { tx.fetch_one(&GET, params![id]).await }).unwrap();
    let read = [
        Value::Int(row.get("number").unwrap()),
        Value::Bool(row.get("flag").unwrap()),
        Value::Text(row.get("words").unwrap()),
        Value::Uuid(row.get("other").unwrap()),
        Value::Bytes(row.get("bytes").unwrap()),
    ];
    assert!(read == values, "wrote {shown:.500}, read {read:.500?}");
    assert_eq!(row.get::<JobId>("id").unwrap(), id);
}

both_engines! {
    migrations: MIGRATIONS;

    /// However many they are: in groups, and what a group leaves over.
    async fn all_rows_are_inserted_but_those_that_are_there(db: TestDb) {
        db.prepare_all(&[ADD_NEW.all(), ADD_ALL.all()].concat()).await.unwrap();
        let row = |id: u64, number: u64| {
            params![Uuid::from_u128(id.into()), i64::try_from(number).unwrap(), true, None::<&str>, None::<Uuid>, [7_u8; 3]]
        };
        let (mut id, mut rows) = (0, 0);
        for more in [0_u64, 1, 3, 4, 5, 15, 16, 21, 63, 64, 65, 85, 200] {
            // Every other row of a call was added before.
            let told = run_tx!(db.db(), "test.add", |tx| {
                let before = tx.insert(&ADD_NEW, (0..more).step_by(2).map(|n| row(id + n, n)).collect()).await?;
                let after = tx.insert(&ADD_NEW, (0..more).map(|n| row(id + n, n)).collect()).await?;
                Ok((before, after))
            });
            assert_eq!(told.unwrap(), (more.div_ceil(2), more / 2), "{more}");
            (id, rows) = (id + more, rows + more);
            let there = read_tx!(db.db(), "test.count", |tx| { tx.fetch_one(&COUNT, params![]).await }).unwrap();
            assert_eq!(there.get::<i64>("things").unwrap(), i64::try_from(rows).unwrap());
            if more == 200 {
                let last = read_tx!(db.db(), "test.get", |tx| { tx.fetch_one(&GET, params![Uuid::from_u128(u128::from(id) - 1)]).await });
                assert_eq!(last.unwrap().get::<i64>("number").unwrap(), 199);
            }
        }
        let again = (0..100_u64).map(|n| params![Uuid::from_u128(u128::from(n) + 10_000 * u128::from(n != 90)), 1_i64]);
        let error = run_tx!(db.db(), "test.add_all", |tx| { tx.insert(&ADD_ALL, again.clone().collect()).await });
        assert!(error.unwrap_err().is_unique_violation());
        let there = read_tx!(db.db(), "test.count", |tx| { tx.fetch_one(&COUNT, params![]).await }).unwrap();
        assert_eq!(there.get::<i64>("things").unwrap(), i64::try_from(rows).unwrap(), "nothing of it stays");
    }

    async fn values_come_back_as_they_were(db: TestDb) {
        let round = |values| round_trip(&db, values);
        round([Value::Int(None), Value::Bool(None), Value::Text(None), Value::Uuid(None), Value::Bytes(None)]).await;
        let numbers = [i64::MIN, i64::MIN + 1, -1, 0, 1, 1 << 53, (1 << 53) + 1, i64::MAX - 1, i64::MAX];
        let words = ["", " ", "'; DROP TABLE things; --", "007", "1e3", "é\u{301}🦀\u{202e}\u{10ffff}", "$1 ?", "a\nb\r\t"];
        let bytes: [&[u8]; 5] = [b"", b"\0", b"0123", b"\xff\xfe\0\x80", "text".as_bytes()];
        for i in 0..numbers.len() {
            let [number, flag, words, other, bytes]: [Value; 5] = params![
                numbers[i], i % 2 == 0, words[i % words.len()], Uuid::from_u128(i as u128), bytes[i % bytes.len()]
            ]
            .try_into()
            .unwrap();
            round([number, flag, words, other, bytes]).await;
        }
        let (blob, text): (Vec<u8>, String) = ((0..8_u32 << 20).map(|i| i.to_le_bytes()[1]).collect(), "é".repeat(1 << 20));
        let big = params![0_i64, true, text, Uuid::max(), blob];
        round(big.try_into().unwrap()).await;
    }

    async fn aggregates_and_returned_rows_are_typed(db: TestDb) {
        let row = read_tx!(db.db(), "test.count", |tx| { tx.fetch_one(&COUNT, params![]).await }).unwrap();
        assert_eq!(row.get::<i64>("things").unwrap(), 0);
        assert_eq!(row.get::<Option<i64>>("total").unwrap(), None);
        assert!(!row.get::<bool>("some").unwrap());
        let id = Uuid::from_u128(1);
        let number = run_tx!(db.db(), "test.add", |tx| {
            tx.execute(&ADD, params![id, 41_i64, true, None::<&str>, None::<Uuid>, None::<Vec<u8>>]).await?;
            tx.fetch_one(&RETURNING, params![id]).await?.get::<i64>("number")
        });
        assert_eq!(number.unwrap(), 42);
        let found = read_tx!(db.db(), "test.find", |tx| {
            tx.fetch_one(&FIND_BY_NULL, params![None::<String>, true]).await?.get::<i64>("things")
        });
        assert_eq!(found.unwrap(), 1);
    }

    async fn wrong_reads_fail_and_do_not_guess(db: TestDb) {
        round_trip(&db, params![7_i64, true, "seven", None::<Uuid>, None::<Vec<u8>>].try_into().unwrap()).await;
        let row = read_tx!(db.db(), "test.any", |tx| { tx.fetch_one(&ANY, params![7_i64]).await }).unwrap();
        assert!(row.get::<String>("number").is_err());
        assert!(row.get::<i64>("words").is_err());
        assert!(row.get::<Vec<u8>>("number").is_err());
        assert!(row.get::<Timestamp>("missing").is_err());
        assert!(row.parse::<i64>("words").unwrap_err().to_string().contains("words"));
        let null = row.get::<Uuid>("other").unwrap_err();
        assert_eq!(null.to_string(), "column other: it is NULL");
        assert!(row.get::<Option<Uuid>>("other").unwrap().is_none());
    }

    async fn a_nul_character_is_refused_alike(db: TestDb) {
        let refused = run_tx!(db.db(), "test.add", |tx| {
            tx.execute(&ADD, params![Uuid::nil(), 0_i64, true, "a\0b", None::<Uuid>, None::<Vec<u8>>]).await
        });
        let refused = gatehouse_core::Error::from(refused.unwrap_err());
        assert_eq!((refused.code(), refused.reason()), (ErrorCode::InvalidArgument, "NUL_IN_TEXT"));
    }

    async fn every_statement_prepares_and_wrong_ones_are_named(db: TestDb) {
        db.prepare_all(ALL).await.unwrap();
        let wrong = [COUNT, gatehouse_db::Sql::new("MISSPELT", "SELECT nothing FROM things")];
        let error = db.prepare_all(&wrong).await.unwrap_err().to_string();
        assert!(error.contains("MISSPELT") && !error.contains("COUNT:"), "{error}");
    }
}
