//! The embedded store, stopped between any two steps and damaged in any byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{IdempotencyToken, VersionId};

fn token(number: usize) -> IdempotencyToken {
    IdempotencyToken::new(format!("{number:032}")).unwrap()
}

fn config(root: &Path) -> EmbeddedConfig {
    EmbeddedConfig { folder: root.join("secrets"), key_file: root.join("keys/secrets.json") }
}

fn open(root: &Path) -> Result<Embedded> {
    Embedded::open(&config(root), Environment::Dev, Clock::system(), Entropy::system())
}

fn put(store: &Embedded, key: &SecretKey, number: usize) -> Result<()> {
    let value = Secret::new(format!("value {number}").into_bytes());
    store.update(key, &Mutation::Put { token: token(number), value, now: store.clock.now() })
}

fn promote(store: &Embedded, key: &SecretKey, number: usize, expected: Option<usize>) -> Result<()> {
    let of = |number| VersionId::of(&token(number));
    store.update(key, &Mutation::Promote { version: of(number), expected: expected.map(of) })
}

/// A disk that stops at its `stop`th step and stays stopped, as a dead process does.
fn dying(stop: usize) -> (Disk, Arc<AtomicUsize>) {
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = steps.clone();
    let disk = Disk::observed(move |_| {
        if counted.fetch_add(1, Ordering::SeqCst) >= stop { Err(io::Error::other("dead")) } else { Ok(()) }
    });
    (disk, steps)
}

#[test]
fn dying_at_any_step_leaves_before_or_after() {
    let key = SecretKey::new("a/b").unwrap();
    let mut stop = 0;
    loop {
        let root = tempfile::tempdir().unwrap();
        let (disk, steps) = dying(stop);
        let mut acknowledged = 0;
        if let Ok(store) = Embedded::open_on(
            disk,
            &config(root.path()),
            Environment::Dev,
            Clock::system(),
            Entropy::system(),
        ) {
            let work: [&dyn Fn() -> Result<()>; 6] = [
                &|| put(&store, &key, 1),
                &|| promote(&store, &key, 1, None),
                &|| put(&store, &key, 2),
                &|| promote(&store, &key, 2, Some(1)),
                &|| store.rotate().map(|_| ()),
                &|| put(&store, &key, 3),
            ];
            acknowledged = work.iter().take_while(|call| call().is_ok()).count();
        }
        let died = steps.load(Ordering::SeqCst) > stop;

        let store = open(root.path()).unwrap_or_else(|error| panic!("step {stop}: {error}"));
        let document = store.load(&key).unwrap().unwrap_or_default();
        let current = document.current().map(|version| version.value.expose().clone());
        let (versions, text) = (document.list().len(), |n: usize| Some(format!("value {n}").into_bytes()));
        // What was acknowledged is there; of what was not, at most the one call that died.
        let states =
            [(0, None), (1, None), (1, text(1)), (2, text(1)), (2, text(2)), (2, text(2)), (3, text(2))];
        let allowed = [&states[acknowledged], &states[(acknowledged + 1).min(6)]];
        assert!(
            allowed.contains(&&(versions, current.clone())),
            "step {stop}, {acknowledged}: {versions} {current:?}"
        );
        // And the work can be done again from its beginning.
        for number in 1..=3 {
            put(&store, &key, number).unwrap();
        }
        if !died {
            assert_eq!(acknowledged, 6);
            assert!(stop > 25, "only {stop} steps were seen");
            return;
        }
        stop += 1;
    }
}

#[test]
fn damage_in_any_byte_is_told_and_touches_no_other_secret() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    let (key, other) = (SecretKey::new("a").unwrap(), SecretKey::new("a/b").unwrap());
    put(&store, &key, 1).unwrap();
    put(&store, &other, 1).unwrap();
    let path = store.path(&key);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(store.load(&key), Err(Error::Corrupt { .. })), "cut at {length}");
        assert!(matches!(put(&store, &key, 2), Err(Error::Corrupt { .. })), "cut at {length}: overwritten");
    }
    // One secret's file in another's place.
    fs::copy(store.path(&other), &path).unwrap();
    assert!(matches!(store.load(&key), Err(Error::Corrupt { .. })));
    assert!(store.load(&other).unwrap().is_some());
    fs::write(&path, &whole).unwrap();
    assert!(store.load(&key).unwrap().is_some());
}

#[test]
fn a_store_without_its_key_file_or_with_a_wrong_one_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let key_file = root.path().join("keys/secrets.json");
    drop(open(root.path()).unwrap());
    assert_eq!(fs::metadata(&key_file).unwrap().mode() & 0o777, 0o600);
    let right = fs::read(&key_file).unwrap();

    fs::remove_file(&key_file).unwrap();
    assert!(matches!(open(root.path()), Err(Error::Setup(text)) if text.contains("missing")));
    assert!(!key_file.exists(), "a new key was made over an existing store");

    create_key_file(&key_file, Environment::Dev, &Clock::system(), &Entropy::system()).unwrap();
    assert!(matches!(open(root.path()), Err(Error::Setup(text)) if text.contains("right one")));
    assert!(create_key_file(&key_file, Environment::Dev, &Clock::system(), &Entropy::system()).is_err());

    fs::write(&key_file, &right).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&key_file, readable).unwrap();
    assert!(matches!(open(root.path()), Err(Error::Setup(text)) if text.contains("chmod")));
    fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    drop(open(root.path()).unwrap());

    fs::remove_file(root.path().join("secrets/store.json")).unwrap();
    drop(open(root.path()).unwrap());
}

/// Root reads what is closed to others; what leads to itself nobody reads.
#[test]
fn what_can_not_be_read_is_to_be_let_be() {
    for place in
        ["keys/secrets.json", "keys", "secrets", "secrets/objects", "secrets/store.json", "secrets/lock"]
    {
        let root = tempfile::tempdir().unwrap();
        drop(open(root.path()).unwrap());
        let (place, aside) = (root.path().join(place), root.path().join("aside"));
        fs::rename(&place, &aside).unwrap();
        std::os::unix::fs::symlink(&place, &place).unwrap();
        let told = match open(root.path()) {
            Err(Error::Setup(told)) => told,
            other => panic!("{}: {:?}", place.display(), other.map(|_| ())),
        };
        for words in ["can't be used", "symbolic links", "leave it as it is", "check its owner and mode"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        fs::remove_file(&place).unwrap();
        fs::rename(&aside, &place).unwrap();
        drop(open(root.path()).unwrap());
    }
}

#[test]
fn outside_dev_no_key_is_made() {
    let root = tempfile::tempdir().unwrap();
    let opened = Embedded::open(&config(root.path()), Environment::Prod, Clock::system(), Entropy::system());
    assert!(matches!(opened, Err(Error::Setup(text)) if text.contains("never made by itself")));
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let first = open(root.path()).unwrap();
    assert!(matches!(open(root.path()), Err(Error::Locked(_))));
    drop(first);
    drop(open(root.path()).unwrap());
}

#[test]
fn no_file_shows_a_value_or_key_material() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    let key = SecretKey::new("a/b").unwrap();
    put(&store, &key, 1).unwrap();
    let bytes = fs::read(store.path(&key)).unwrap();
    let encoded = STANDARD.encode("value 1");
    for needle in [b"value 1".as_slice(), encoded.as_bytes()] {
        assert!(!bytes.windows(needle.len()).any(|window| window == needle));
    }
    assert!(!format!("{store:?}").contains(&STANDARD.encode([0; 3])));
}

/// The child of `killed_at_any_moment_keeps_what_it_acknowledged`: writes until it is killed, and says each
/// number once it is durable.
#[test]
#[ignore = "run by its parent, which kills it"]
fn child_that_writes() {
    use std::io::Write;

    let Some(root) = std::env::var_os("GATEHOUSE_TEST_CRASH_ROOT") else { return };
    let first: usize = std::env::var("GATEHOUSE_TEST_CRASH_FIRST").unwrap().parse().unwrap();
    let store = open(Path::new(&root)).unwrap();
    let key = SecretKey::new("a/b").unwrap();
    let mut out = io::stdout();
    for number in first.. {
        put(&store, &key, number).unwrap();
        promote(&store, &key, number, number.checked_sub(1)).unwrap();
        writeln!(out, "durable {number}").unwrap();
        out.flush().unwrap();
        if let Some(old) = number.checked_sub(1) {
            store.update(&key, &Mutation::DeleteVersion { version: VersionId::of(&token(old)) }).unwrap();
        }
        if number % 7 == 0 {
            store.rotate().unwrap();
        }
    }
}

#[test]
fn killed_at_any_moment_keeps_what_it_acknowledged() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let root = tempfile::tempdir().unwrap();
    let key = SecretKey::new("a/b").unwrap();
    let mut next = 0_usize;
    for round in 0..40_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "embedded::crash_tests::child_that_writes", "--ignored", "--nocapture"])
            .env("GATEHOUSE_TEST_CRASH_ROOT", root.path())
            .env("GATEHOUSE_TEST_CRASH_FIRST", next.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(io::Result::ok);
        let mut durable = next.checked_sub(1);
        let mut seen = 0;
        // At another line, and another moment after it, each round.
        for line in lines {
            if let Some((_, number)) = line.split_once("durable ") {
                durable = Some(number.parse().unwrap());
                seen += 1;
                if seen > round % 5 {
                    let busy = std::time::Instant::now();
                    while busy.elapsed() < std::time::Duration::from_micros(round * 137 % 3000) {
                        std::hint::spin_loop();
                    }
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let store = open(root.path()).unwrap();
        let document = store.load(&key).unwrap().unwrap();
        let current = document.current().unwrap();
        let number: usize = current.id.as_str().parse().unwrap();
        assert_eq!(current.value.expose(), format!("value {number}").as_bytes());
        assert!(Some(number) >= durable, "round {round}: {durable:?} was acknowledged, {number} is there");
        for version in document.list().iter().filter(|version| !version.is_current) {
            store.update(&key, &Mutation::DeleteVersion { version: version.id.clone() }).unwrap();
        }
        next = number + 1;
    }
    assert!(next > 40, "the children wrote only {next} versions");
}
