//! Throwaway Redis servers.
//!
//! [`Redis::start`] runs the distribution's `redis-server` on a free loopback port, with a random password and
//! nothing persisted. A small shell watches the test process through a pipe: when the process ends, however it
//! ends (`kill -9` included), the pipe closes and the shell ends the server and removes its folder.
//!
//! [`Redis::shared`] uses the server that [`URL_VARIABLE`] names where there is one, so that a whole test run
//! needs one server only. Each handle has a [`Redis::tag`] of its own: put it into the keys, and tests that share
//! a server never meet.

use std::fmt;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use gatehouse_core::Entropy;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::authority::{Authority, Leaf};
use crate::{free_port, lasting_port};

/// Names a Redis server that tests may share, as `redis://:password@host:port/`.
pub const URL_VARIABLE: &str = "GATEHOUSE_TEST_REDIS_URL";

/// How long a server may take to answer its first PING.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The watcher. `$1`: the server's program; `$2`: its configuration file; `$3`: its folder. It ends the server when
/// its standard input closes, then removes the folder unless the last word it read was `keep`. The server gets
/// its parent-death signal as well, so that even killing the watcher leaves nothing behind.
const WATCHER: &str = r#"
trap '' INT TERM HUP
if command -v setpriv >/dev/null 2>&1; then
  setpriv --pdeathsig KILL "$1" "$2" >/dev/null 2>&1 &
else
  "$1" "$2" >/dev/null 2>&1 &
fi
server=$!
echo "$server"
word=
read -r word
kill -KILL "$server" 2>/dev/null
wait "$server" 2>/dev/null
[ "$word" = keep ] || rm -rf "$3"
"#;

/// A Redis server for tests: one of its own, or a share in the one that [`URL_VARIABLE`] names. Dropping it ends
/// a server of its own; keys in a shared one are left to expire.
pub struct Redis {
    url: String,
    tag: String,
    server: Option<Server>,
}

struct Server {
    program: PathBuf,
    folder: PathBuf,
    password: String,
    port: u16,
    running: Option<Running>,
}

struct Running {
    watcher: Child,
    lifeline: ChildStdin,
    pid: Pid,
}

impl Redis {
    /// Starts a server of its own and waits until it answers. Blocks, for some 20 ms.
    ///
    /// # Errors
    /// `redis-server` is not installed (the message says what to install), or it did not come up.
    pub fn start() -> io::Result<Self> {
        Self::start_on(free_port, None)
    }

    /// As [`Redis::start`], one whose [`Redis::url`] is `rediss://`, with a certificate of `authority` for localhost and
    /// 127.0.0.1.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn start_with_tls(authority: &Authority) -> io::Result<Self> {
        Self::start_on(free_port, Some(authority))
    }

    /// As [`Redis::start`], on a port that nobody takes while it is stopped.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn start_lasting() -> io::Result<Self> {
        Self::start_on(lasting_port, None)
    }

    fn start_on(port: fn() -> io::Result<u16>, tls: Option<&Authority>) -> io::Result<Self> {
        let program = find_program("redis-server").ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "redis-server is not installed: run `apt-get install redis-server`, \
                     or set {URL_VARIABLE} to a server that tests may use"
                ),
            )
        })?;
        let mut last = Error::other("redis-server was never started");
        // Between asking the system for a free port and the server taking it, another process may: try another.
        for _ in 0..5 {
            let port = port()?;
            let mut server = Server::prepare(program.clone(), port)?;
            let url = match tls {
                None => format!("redis://:{}@127.0.0.1:{port}/", server.password),
                Some(authority) => server.add_tls(authority, free_port()?)?,
            };
            match server.run() {
                Ok(()) => {
                    return Ok(Self { url, tag: random_hex::<8>(), server: Some(server) });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The server that [`URL_VARIABLE`] names, or else one of its own.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn shared() -> io::Result<Self> {
        match std::env::var(URL_VARIABLE) {
            Ok(url) if !url.trim().is_empty() => {
                Ok(Self { url: url.trim().to_owned(), tag: random_hex::<8>(), server: None })
            }
            _ => Self::start(),
        }
    }

    /// Where it listens, password included.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A random word that no other handle has. Put it into every key (as the cluster hash tag, `{tag}`, where keys
    /// must share a slot).
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Ends the server at once, as a crash would; clients see their connections break. Does nothing if it is
    /// stopped already.
    ///
    /// # Errors
    /// The server is a shared one, which is not this test's to stop.
    pub fn stop(&mut self) -> io::Result<()> {
        self.own()?.end("keep\n");
        Ok(())
    }

    /// Starts a stopped server again, on the same port and with the same password; it is empty. Does nothing if
    /// it runs already.
    ///
    /// # Errors
    /// The server is a shared one, or it did not come up.
    pub fn start_again(&mut self) -> io::Result<()> {
        let server = self.own()?;
        if server.running.is_some() {
            return Ok(());
        }
        server.run()
    }

    /// Freezes the server: connections stay open and nothing is answered until [`Redis::resume`].
    ///
    /// # Errors
    /// The server is a shared one, or it is stopped.
    pub fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// The server is a shared one, or it is stopped.
    pub fn resume(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&mut self, signal: Signal) -> io::Result<()> {
        let running = self.own()?.running.as_ref().ok_or_else(|| Error::other("the server is stopped"))?;
        kill(running.pid, signal).map_err(Error::from)
    }

    fn own(&mut self) -> io::Result<&mut Server> {
        self.server.as_mut().ok_or_else(|| {
            Error::other("a shared Redis is not this test's to stop: start one with Redis::start()")
        })
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.server.as_ref().map(|server| server.port);
        f.debug_struct("Redis").field("tag", &self.tag).field("port", &port).finish_non_exhaustive()
    }
}

impl Server {
    fn prepare(program: PathBuf, port: u16) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gatehouse-redis-").tempdir()?.keep();
        let password = random_hex::<16>();
        let server = Self { program, folder, password, port, running: None };
        // The password stands in a file of a private folder and not in the arguments, which `ps` shows to all.
        std::fs::write(
            server.configuration(),
            format!(
                "bind 127.0.0.1\nport {port}\nrequirepass {}\nsave \"\"\nappendonly no\ndaemonize no\n\
                 dir \"{}\"\nlogfile \"\"\ndatabases 1\n",
                server.password,
                server.folder.display()
            ),
        )?;
        Ok(server)
    }

    /// A second port that takes TLS only; the first is left for us to see whether the server is up.
    fn add_tls(&self, authority: &Authority, port: u16) -> io::Result<String> {
        let issued = authority.issue(&self.folder, "server", &Leaf::default());
        let mut configuration = std::fs::OpenOptions::new().append(true).open(self.configuration())?;
        write!(
            configuration,
            "tls-port {port}\ntls-cert-file \"{}\"\ntls-key-file \"{}\"\ntls-ca-cert-file \"{}\"\ntls-auth-clients no\n",
            issued.certificate.display(),
            issued.key.display(),
            issued.authorities.display()
        )?;
        Ok(format!("rediss://:{}@127.0.0.1:{port}/", self.password))
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("redis.conf")
    }

    fn run(&mut self) -> io::Result<()> {
        let mut watcher = Command::new("/bin/sh")
            .args(["-c", WATCHER, "redis-watcher"])
            .arg(&self.program)
            .arg(self.configuration())
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: a signal to the test's whole group must not take the watcher along.
            .process_group(0)
            .spawn()?;
        let lifeline = watcher.stdin.take().ok_or_else(|| Error::other("the watcher has no input"))?;
        let mut said = watcher.stdout.take().ok_or_else(|| Error::other("the watcher has no output"))?;
        let pid = read_number(&mut said)?;
        self.running = Some(Running { watcher, lifeline, pid: Pid::from_raw(pid) });
        let came_up = self.wait_until_ready();
        if came_up.is_err() {
            self.end("keep\n");
        }
        came_up
    }

    fn wait_until_ready(&self) -> io::Result<()> {
        let address = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port));
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            // The password is part of the question: whoever else has the port does not answer it rightly.
            if ping(address, &self.password).unwrap_or(false) {
                return Ok(());
            }
            if Instant::now() >= deadline || self.has_died() {
                return Err(Error::other(format!("redis-server did not come up on {address}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the server's process is gone or a zombie (the watcher reaps it only when told to end).
    fn has_died(&self) -> bool {
        let Some(running) = &self.running else { return true };
        match std::fs::read_to_string(format!("/proc/{}/stat", running.pid)) {
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
            Err(_) => Path::new("/proc/self/stat").exists(),
        }
    }

    fn end(&mut self, word: &str) {
        if let Some(mut running) = self.running.take() {
            // A failure to write means that the watcher is gone, and then so is the server.
            let _ = running.lifeline.write_all(word.as_bytes());
            drop(running.lifeline);
            let _ = running.watcher.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end("");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn random_hex<const N: usize>() -> String {
    Entropy::system().bytes::<N>().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

fn read_number(from: &mut impl Read) -> io::Result<i32> {
    let mut line = String::new();
    let mut byte = [0];
    while from.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(char::from(byte[0]));
    }
    line.trim().parse().map_err(|_| Error::other("the watcher could not start redis-server"))
}

/// Whether a server there takes `password` and answers PING (RESP inline commands).
fn ping(address: SocketAddr, password: &str) -> io::Result<bool> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+OK\r\n+PONG\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(redis: &Redis) -> SocketAddr {
        let port = redis.server.as_ref().unwrap().port;
        SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    }

    fn answers(redis: &Redis) -> bool {
        ping(address(redis), &redis.server.as_ref().unwrap().password).unwrap_or(false)
    }

    #[test]
    fn a_server_starts_stops_and_starts_again_on_its_port() {
        let mut redis = Redis::start().unwrap();
        assert!(answers(&redis));
        let before = redis.url().to_owned();
        redis.stop().unwrap();
        assert!(!answers(&redis));
        redis.start_again().unwrap();
        assert!(answers(&redis));
        assert_eq!(redis.url(), before);
    }

    #[test]
    fn a_wrong_password_is_refused() {
        let redis = Redis::start().unwrap();
        assert!(!ping(address(&redis), "wrong").unwrap_or(false));
    }

    #[test]
    fn dropping_it_leaves_neither_process_nor_folder() {
        let redis = Redis::start().unwrap();
        let server = redis.server.as_ref().unwrap();
        let (folder, pid) = (server.folder.clone(), server.running.as_ref().unwrap().pid);
        assert!(folder.exists());
        drop(redis);
        assert!(!folder.exists());
        assert!(kill(pid, None).is_err());
    }

    /// The watcher sees what it would see after a `kill -9` of this process: its input closes without a word.
    #[test]
    fn a_killed_test_process_leaves_nothing() {
        let mut redis = Redis::start().unwrap();
        let server = redis.server.as_mut().unwrap();
        let folder = server.folder.clone();
        let Running { mut watcher, lifeline, pid } = server.running.take().unwrap();
        drop(lifeline);
        watcher.wait().unwrap();
        assert!(kill(pid, None).is_err());
        assert!(!folder.exists());
    }

    #[test]
    fn a_frozen_server_answers_again_once_resumed() {
        let mut redis = Redis::start().unwrap();
        redis.pause().unwrap();
        assert!(!answers(&redis));
        redis.resume().unwrap();
        assert!(answers(&redis));
    }
}
