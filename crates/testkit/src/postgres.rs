//! Throwaway PostgreSQL servers.
//!
//! [`Postgres::start`] runs the distribution's binaries on a free loopback port, with a random password and nothing
//! that survives. A small shell watches the test process through a pipe: when the process ends, however it ends
//! (`kill -9` included), the pipe closes and the shell ends the server and removes its folder. PostgreSQL refuses to
//! run as root, so started by root it runs as `postgres` or `nobody`.
//!
//! [`Postgres::shared`] uses the server that [`URL_VARIABLE`] names where there is one, or else one for the whole
//! process; `gatehouse-test-servers -- cargo test` starts one for a whole run.

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Error, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use gatehouse_core::Entropy;
use nix::unistd::{Uid, User};

use crate::authority::{Authority, Leaf};
use crate::{free_port, lasting_port};

/// Names a PostgreSQL database that tests may fill, as `postgres://user:password@host:port/database`. The user must be
/// allowed to create schemas.
pub const URL_VARIABLE: &str = "GATEHOUSE_TEST_POSTGRES_URL";

/// `initdb` and the start together; about 2 s on an idle machine, and test machines are rarely idle.
const START_TIMEOUT: Duration = Duration::from_mins(2);

/// What a test server runs with: nothing of it has to survive.
const FOR_TESTS: &[&str] =
    &["fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=64MB"];

/// What one runs with that is stopped and started again: the machine goes on, the server's commits are in its files. Its stop
/// waits for whoever has connected and said nothing yet, as through a proxy that stalls, for `authentication_timeout`: a
/// minute by default, in which no fault begins or is healed.
const LASTING: &[&str] = &[
    "fsync=off",
    "synchronous_commit=on",
    "full_page_writes=off",
    "shared_buffers=64MB",
    "authentication_timeout=5s",
];

/// The watcher. `$1`: the folder of the programs; `$2`: its own folder; `$3`: the port; the rest: options of the
/// server. Everything that it starts has a parent-death signal too, so that even killing the watcher leaves no server
/// behind.
const WATCHER: &str = r#"
trap '' INT TERM HUP
programs=$1 folder=$2 port=$3
shift 3
with() {
  signal=$1; shift
  if command -v setpriv >/dev/null 2>&1; then exec setpriv --pdeathsig "$signal" "$@"; else exec "$@"; fi
}
serve() {
  with QUIT "$programs/postgres" -D "$folder/data" -p "$port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories="$folder" -c max_connections=400 -c deadlock_timeout=100ms -c log_min_messages=fatal "$@"
}
(
  trap - INT TERM HUP
  exec >"$folder/log" 2>&1
  (with KILL "$programs/initdb" -D "$folder/data" -U gatehouse --pwfile="$folder/password" -A scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync) &&
  serve "$@"
) &
server=$!
while read -r word; do
  case $word in
    stop) kill -INT "$server"; wait "$server"; echo stopped ;;
    crash) kill -QUIT "$server"; wait "$server"; echo stopped ;;
    start) rm -f "$folder/data/postmaster.pid"; (trap - INT TERM HUP; exec >"$folder/log" 2>&1; serve "$@") & server=$!; echo started ;;
  esac
done
# The first is for a folder still being made, the second ends the server without waiting for its clients.
kill -TERM "$server" 2>/dev/null
kill -QUIT "$server" 2>/dev/null
wait "$server" 2>/dev/null
rm -rf "$folder"
"#;

/// A PostgreSQL server for tests. Dropping it ends it, unless it is one that [`URL_VARIABLE`] names.
pub struct Postgres {
    url: String,
    server: Option<Server>,
}

struct Server {
    watcher: Child,
    /// Open as long as the server shall live; this process's end closes it.
    lifeline: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    folder: PathBuf,
    port: u16,
}

impl Server {
    /// Has the watcher do something and waits until it is done.
    fn tell(&mut self, word: &str) -> io::Result<()> {
        let lifeline = self.lifeline.as_mut().ok_or_else(|| Error::other("the watcher was told to end"))?;
        writeln!(lifeline, "{word}")?;
        let mut done = String::new();
        if self.output.read_line(&mut done)? == 0 {
            return Err(Error::other("the watcher has ended"));
        }
        Ok(())
    }
}

impl Postgres {
    /// Starts a server of its own and waits until it takes connections. Blocks, for some 2 s.
    ///
    /// # Errors
    /// The binaries are not installed (the message says what to install), or the server did not come up (the message
    /// holds its log).
    pub fn start() -> io::Result<Self> {
        Self::start_as(FOR_TESTS, free_port, None)
    }

    /// As [`Postgres::start`], with `settings` (`name=value`) instead of those that make tests fast: with none, commits
    /// are as durable as those of an installed server.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_with(settings: &[&str]) -> io::Result<Self> {
        Self::start_as(settings, free_port, None)
    }

    /// As [`Postgres::start`], one that takes TLS too, with a certificate of `authority` for localhost and 127.0.0.1.
    /// [`Postgres::url`] says nothing of it.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_with_tls(authority: &Authority) -> io::Result<Self> {
        Self::start_as(FOR_TESTS, free_port, Some(authority))
    }

    /// As [`Postgres::start`], one that keeps what it committed when it is stopped, even if by [`Postgres::crash`].
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_lasting() -> io::Result<Self> {
        Self::start_as(LASTING, lasting_port, None)
    }

    fn start_as(
        settings: &[&str],
        port: fn() -> io::Result<u16>,
        tls: Option<&Authority>,
    ) -> io::Result<Self> {
        let programs = find_programs().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "the PostgreSQL server is not installed: run `apt-get install postgresql`, \
                     or set {URL_VARIABLE} to a database that tests may fill"
                ),
            )
        })?;
        let mut last = Error::other("PostgreSQL was never started");
        // Between asking the system for a free port and the server taking it, another process may: try another.
        for _ in 0..3 {
            match start_on(&programs, port()?, settings, tls) {
                Ok(started) => return Ok(started),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The server that [`URL_VARIABLE`] names, or else one that this process starts at the first call and that ends
    /// with the process. Blocks as [`Postgres::start`] does.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn shared() -> io::Result<&'static Self> {
        static SHARED: OnceLock<Result<Postgres, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| match std::env::var(URL_VARIABLE) {
            Ok(url) if !url.trim().is_empty() => Ok(Self { url: url.trim().to_owned(), server: None }),
            _ => Self::start().map_err(|error| error.to_string()),
        });
        shared.as_ref().map_err(|error| Error::other(error.clone()))
    }

    /// Stops the server in order: its clients are sent away at once, running transactions are rolled back.
    ///
    /// # Errors
    /// It is a shared one, which is not this test's to stop, or its watcher is gone.
    pub fn stop(&mut self) -> io::Result<()> {
        self.own()?.tell("stop")
    }

    /// Stops the server as a crash would: it recovers from its log at the next start. Only one of
    /// [`Postgres::start_lasting`] has all commits then.
    ///
    /// # Errors
    /// As [`Postgres::stop`].
    pub fn crash(&mut self) -> io::Result<()> {
        self.own()?.tell("crash")
    }

    /// Starts a stopped server again, on the same port and data, and waits until it takes connections.
    ///
    /// # Errors
    /// As [`Postgres::stop`], or it did not come up.
    pub fn start_again(&mut self) -> io::Result<()> {
        let server = self.own()?;
        server.tell("start")?;
        // Clients that come too early are refused with a FATAL of their own.
        wait_until_ready(&server.folder, server.port, "PANIC")
    }

    fn own(&mut self) -> io::Result<&mut Server> {
        self.server.as_mut().ok_or_else(|| {
            Error::other(
                "a shared PostgreSQL is not this test's to stop: start one with Postgres::start_lasting()",
            )
        })
    }

    /// Where it listens, password included.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("own", &self.server.is_some()).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // Nothing to do about a watcher that can't be waited for: it ends the server all the same.
        let _ = self.watcher.wait();
    }
}

fn start_on(programs: &Path, port: u16, settings: &[&str], tls: Option<&Authority>) -> io::Result<Postgres> {
    let password = random_hex::<16>();
    let folder = std::env::temp_dir().join(format!("gatehouse-postgres-{}", random_hex::<8>()));
    let user = unprivileged_user()?;
    DirBuilder::new().mode(0o700).create(&folder)?;
    let password_file = folder.join("password");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&password_file)?
        .write_all(password.as_bytes())?;
    let issued = tls.map(|authority| authority.issue(&folder, "server", &Leaf::default()));
    let tls_settings = issued.iter().flat_map(|issued| {
        let file = |name: &str, path: &Path| format!("{name}={}", path.display());
        ["ssl=on".to_owned(), file("ssl_cert_file", &issued.certificate), file("ssl_key_file", &issued.key)]
    });
    let tls_settings: Vec<_> = tls_settings.collect();
    let mut watcher = Command::new("/bin/sh");
    if let Some(user) = &user {
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        chown(&folder, Some(uid), Some(gid))?;
        chown(&password_file, Some(uid), Some(gid))?;
        if let Some(issued) = &issued {
            chown(&issued.certificate, Some(uid), Some(gid))?;
            chown(&issued.key, Some(uid), Some(gid))?;
        }
        watcher.uid(uid).gid(gid);
    }
    let mut watcher = watcher
        .args(["-c", WATCHER, "postgres-watcher"])
        .arg(programs)
        .arg(&folder)
        .arg(port.to_string())
        .args(settings.iter().flat_map(|setting| ["-c", setting]))
        .args(tls_settings.iter().flat_map(|setting| ["-c", setting.as_str()]))
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A group of its own: a signal to the test's whole group must not take the server along.
        .process_group(0)
        .spawn()?;
    let (Some(lifeline), Some(output)) = (watcher.stdin.take(), watcher.stdout.take()) else {
        return Err(Error::other("the watcher has no pipes"));
    };
    let (lifeline, output) = (Some(lifeline), BufReader::new(output));
    let server = Server { watcher, lifeline, output, folder: folder.clone(), port };
    wait_until_ready(&folder, port, "FATAL")?;
    let url = format!("postgres://gatehouse:{password}@127.0.0.1:{port}/postgres");
    Ok(Postgres { url, server: Some(server) })
}

/// The server writes its state into `postmaster.pid`: line 1 its process id, line 8 `ready` once it takes connections.
/// `failure` in its log means that it will not.
fn wait_until_ready(folder: &Path, port: u16, failure: &str) -> io::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    loop {
        let state = std::fs::read_to_string(folder.join("data/postmaster.pid")).unwrap_or_default();
        if state.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
            return Ok(());
        }
        let log_now = log();
        if log_now.contains(failure) || log_now.contains("initdb: error") || Instant::now() >= deadline {
            return Err(Error::other(format!(
                "PostgreSQL did not come up on port {port}; its log:\n{log_now}"
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whom to run the server as: `None` for ourselves.
fn unprivileged_user() -> io::Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).map_err(Error::from)? {
            return Ok(Some(user));
        }
    }
    Err(Error::other("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`"))
}

/// The folder with `initdb` and `postgres`: Debian keeps one for each version outside PATH; the highest wins.
fn find_programs() -> Option<PathBuf> {
    let mut debian: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    debian.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = debian.into_iter().rev().map(|(_, folder)| folder).chain(std::env::split_paths(&path));
    candidates.into_iter().find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

fn random_hex<const N: usize>() -> String {
    Entropy::system().bytes::<N>().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
