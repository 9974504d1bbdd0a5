//! Whether secrets stand where they must not: in tables, in Redis, in files.

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Error, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// How many bytes of each form are compared first.
const HEAD: usize = 6;

/// Texts to look for, as they are, in base64 and in hexadecimal digits.
#[derive(Debug, Default)]
pub struct Traces {
    forms: HashSet<Vec<u8>>,
    heads: HashSet<[u8; HEAD]>,
    lengths: BTreeSet<usize>,
}

impl Traces {
    /// Looks for these, each of 8 bytes at least.
    #[must_use]
    pub fn of<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut traces = Self::default();
        for secret in secrets {
            let trimmed = |text: String| text.trim_end_matches('=').to_owned();
            for form in [
                secret.to_owned(),
                hex(secret.as_bytes()),
                trimmed(STANDARD.encode(secret)),
                trimmed(URL_SAFE.encode(secret)),
            ] {
                let form = form.into_bytes();
                if let Some(head) = form.first_chunk::<HEAD>() {
                    traces.heads.insert(*head);
                    traces.lengths.insert(form.len());
                    traces.forms.insert(form);
                }
            }
        }
        traces
    }

    /// Whether one of them stands in `text`.
    #[must_use]
    pub fn stand_in(&self, text: &[u8]) -> bool {
        text.windows(HEAD).enumerate().any(|(place, head)| {
            let head: &[u8; HEAD] = head.try_into().unwrap_or(&[0; HEAD]);
            self.heads.contains(head)
                && self.lengths.iter().any(|length| {
                    text.get(place..place + length).is_some_and(|found| self.forms.contains(found))
                })
        })
    }

    /// The tables of schemas whose name begins with `schema` in which one stands, and how many were looked at.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn in_tables(&self, url: &str, schema: &str) -> sqlx::Result<(Vec<String>, usize)> {
        let mut database = Look::into(url).await?;
        let tables: Vec<(String, String)> = sqlx::query_as(
            "SELECT schemaname::text, tablename::text FROM pg_tables WHERE starts_with(schemaname, $1)",
        )
        .bind(schema)
        .fetch_all(&mut database.0)
        .await?;
        let (mut found, looked_at) = (Vec::new(), tables.len());
        for (schema, table) in tables {
            let name = format!("{schema}.{table}");
            let rows = database.column(&format!("SELECT rows::text FROM {name} rows")).await?;
            if rows.iter().any(|row| self.stand_in(row.as_bytes())) {
                found.push(name);
            }
        }
        Ok((found, looked_at))
    }

    /// The files below `folder` in which one stands, and how many were looked at.
    ///
    /// # Errors
    /// One can't be read.
    pub fn in_files(&self, folder: &Path) -> io::Result<(Vec<String>, usize)> {
        let (mut found, mut looked_at) = (Vec::new(), 0);
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                let (more, files) = self.in_files(&path)?;
                found.extend(more);
                looked_at += files;
            } else {
                looked_at += 1;
                if self.stand_in(&std::fs::read(&path)?) {
                    found.push(path.display().to_string());
                }
            }
        }
        Ok((found, looked_at))
    }
}

/// A look into a database, over one connection.
#[derive(Debug)]
pub struct Look(PgConnection);

impl Look {
    /// Connects.
    ///
    /// # Errors
    /// It can't.
    pub async fn into(url: &str) -> sqlx::Result<Self> {
        PgConnection::connect(url).await.map(Self)
    }

    /// The first column, a text, of what a statement of a test's own gives.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn column(&mut self, statement: &str) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar(AssertSqlSafe(statement.to_owned())).fetch_all(&mut self.0).await
    }
}

/// Every command that anyone sends to a Redis (its MONITOR), from the start to the end of this.
#[derive(Debug)]
pub struct Overheard {
    text: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
}

impl Overheard {
    /// Begins to listen to the Redis at `url`, which has a password.
    ///
    /// # Errors
    /// It does not let us.
    pub fn from(url: &str) -> io::Result<Self> {
        let url = url::Url::parse(url).map_err(Error::other)?;
        let place = (url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(6379));
        let mut stream = TcpStream::connect(place)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(format!("AUTH {}\r\nMONITOR\r\n", url.password().unwrap_or_default()).as_bytes())?;
        let mut agreed = [0; 10];
        stream.read_exact(&mut agreed)?;
        if &agreed != b"+OK\r\n+OK\r\n" {
            return Err(Error::other("Redis does not let us listen"));
        }
        let overheard = Self { text: Arc::default(), ended: Arc::default() };
        let (text, ended) = (overheard.text.clone(), overheard.ended.clone());
        std::thread::spawn(move || {
            let mut part = vec![0; 64 * 1024];
            while !ended.load(Ordering::Relaxed) {
                match stream.read(&mut part) {
                    Ok(0) => return,
                    Ok(bytes) => {
                        let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                        text.extend_from_slice(&part[..bytes]);
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(overheard)
    }

    /// What was heard until now.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Overheard {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// The SHA-256 digest of a text, in hexadecimal digits.
#[must_use]
pub fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_and_nothing_else() {
        let traces = Traces::of(["rt_abcdefghijklmnopqrstuvwxyz"]);
        for form in [
            "x rt_abcdefghijklmnopqrstuvwxyz y".to_owned(),
            format!("\\x0a{}", hex(b"rt_abcdefghijklmnopqrstuvwxyz")),
            STANDARD.encode("rt_abcdefghijklmnopqrstuvwxyz"),
        ] {
            assert!(traces.stand_in(form.as_bytes()), "{form}");
        }
        for other in ["rt_abcdefghijklmnopqrstuvwxy", "", "rt_", "nothing of it"] {
            assert!(!traces.stand_in(other.as_bytes()), "{other}");
        }
    }
}
