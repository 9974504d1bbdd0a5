//! What can go wrong with a database, and what to do about it.

use std::error::Error as StdError;

use sqlx::error::ErrorKind;

/// The result of work on the database.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync>;

/// A failure of the database, or ([`Error::from`] a `gatehouse_core::Error`) a refusal that shall roll back.
///
/// Its text is for operators and logs: it may name hosts and files, never a password.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Failure>);

#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Lost to another transaction; nothing was changed.
    #[error("{at}: another transaction was in the way: {cause}")]
    Conflict { at: &'static str, cause: sqlx::Error },
    #[error("{at}: the value exists already: {cause}")]
    Unique { at: &'static str, cause: sqlx::Error },
    #[error("{at}: the database is not available: {cause}")]
    Unavailable { at: &'static str, cause: sqlx::Error },
    #[error("{at}: no such row")]
    NoRow { at: &'static str },
    #[error("{at}: {cause}")]
    Statement { at: &'static str, cause: sqlx::Error },
    #[error("{at}: a text holds the character U+0000, which can't be stored")]
    NulInText { at: &'static str },
    #[error("{transaction}: {statement} failed, but the transaction went on; nothing was committed")]
    Swallowed { transaction: &'static str, statement: &'static str },
    #[error("column {column}: {cause}")]
    Decode { column: String, cause: Cause },
    /// For the operator: what is wrong and what to do.
    #[error("{message}")]
    Setup {
        message: String,
        #[source]
        cause: Option<Cause>,
    },
    #[error(transparent)]
    Refused(gatehouse_core::Error),
}

impl Error {
    /// A stored value that can't be read as what `column` should hold.
    #[must_use]
    pub fn decode(column: &str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Failure::Decode { column: column.to_owned(), cause: cause.into() }.into()
    }

    pub(crate) fn no_row(at: &'static str) -> Self {
        Failure::NoRow { at }.into()
    }

    pub(crate) fn nul_in_text(at: &'static str) -> Self {
        Failure::NulInText { at }.into()
    }

    pub(crate) fn swallowed(transaction: &'static str, statement: &'static str) -> Self {
        Failure::Swallowed { transaction, statement }.into()
    }

    pub(crate) fn setup(message: impl Into<String>) -> Self {
        Failure::Setup { message: message.into(), cause: None }.into()
    }

    pub(crate) fn setup_caused_by(message: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Failure::Setup { message: message.into(), cause: Some(cause.into()) }.into()
    }

    /// Sorts what the driver said about `at` (a statement's or transaction's name).
    pub(crate) fn from_driver(at: &'static str, cause: sqlx::Error) -> Self {
        let kind = match &cause {
            sqlx::Error::Database(error) => match error.code().as_deref() {
                Some(code) if is_conflict(code) => Failure::Conflict { at, cause },
                Some(code) if is_away(code) => Failure::Unavailable { at, cause },
                _ if error.kind() == ErrorKind::UniqueViolation => Failure::Unique { at, cause },
                _ => Failure::Statement { at, cause },
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            // The connection is not in the state that the driver believes it to be in; the pool closes it.
            | sqlx::Error::InvalidSavePointStatement
            | sqlx::Error::BeginFailed
            | sqlx::Error::WorkerCrashed => Failure::Unavailable { at, cause },
            _ => Failure::Statement { at, cause },
        };
        kind.into()
    }

    /// Whether the same transaction may succeed when run again at once; `run_tx!` already did, several times.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(*self.0, Failure::Conflict { .. })
    }

    /// Whether a unique or primary key forbids the row. The transaction is dead: handle it outside, or use
    /// `ON CONFLICT`.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        matches!(*self.0, Failure::Unique { .. })
    }

    /// Whether the database is away or overloaded. A commit may or may not have happened.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(*self.0, Failure::Unavailable { .. })
    }

    /// Whether the connection is gone, as when the server restarts. Before the commit was sent, nothing was changed.
    pub(crate) fn is_connection_lost(&self) -> bool {
        let Failure::Unavailable { cause, .. } = &*self.0 else { return false };
        match cause {
            sqlx::Error::Io(_) => true,
            sqlx::Error::Database(error) => {
                error.code().is_some_and(|code| code.starts_with("08") || matches!(&*code, "57P01" | "57P02"))
            }
            _ => false,
        }
    }

    /// Whether the tables are not those that the statement is made for: one is gone, or a column is, or has another type.
    #[must_use]
    pub fn is_schema_mismatch(&self) -> bool {
        let Failure::Statement { cause: sqlx::Error::Database(error), .. } = &*self.0 else { return false };
        error.code().is_some_and(|code| is_schema_mismatch(&code))
    }

    /// Whether `fetch_one` found no row.
    #[must_use]
    pub fn is_no_row(&self) -> bool {
        matches!(*self.0, Failure::NoRow { .. })
    }
}

/// SQLSTATE 40001 serialization failure, 40P01 deadlock; SQLite's BUSY (5) and LOCKED (6), whose extended codes
/// keep the primary one in the low byte. SQLSTATEs have five characters, SQLite's codes at most four digits.
fn is_conflict(code: &str) -> bool {
    matches!(code, "40001" | "40P01") || matches!(sqlite_code(code), Some(5 | 6))
}

/// SQLSTATE classes 08 (connection), 53 (resources), 57P (shutdown, starting up), 57014 (statement timeout), 25006
/// (a standby that takes no writes), 58 (system); SQLite's NOMEM, READONLY, IOERR, FULL, CANTOPEN.
fn is_away(code: &str) -> bool {
    if code.len() == 5 {
        ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) || code == "25006"
    } else {
        matches!(sqlite_code(code), Some(7 | 8 | 10 | 13 | 14))
    }
}

/// SQLSTATE 42P01 undefined table, 42703 undefined column, 42883 and 42804 and 42846 operators and types that don't go
/// together; SQLite's ERROR, which a statement that was right once gives for no other reason.
fn is_schema_mismatch(code: &str) -> bool {
    matches!(code, "42P01" | "42703" | "42883" | "42804" | "42846") || sqlite_code(code) == Some(1)
}

fn sqlite_code(code: &str) -> Option<u32> {
    if code.len() == 5 { None } else { code.parse::<u32>().ok().map(|code| code & 0xff) }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self(Box::new(failure))
    }
}

/// A refusal made inside a transaction that shall roll it back; it comes out unchanged.
impl From<gatehouse_core::Error> for Error {
    fn from(error: gatehouse_core::Error) -> Self {
        Failure::Refused(error).into()
    }
}

impl From<Error> for gatehouse_core::Error {
    fn from(error: Error) -> Self {
        match *error.0 {
            Failure::Refused(error) => error,
            Failure::Conflict { .. } => {
                Self::aborted("TRANSACTION_CONFLICT", "Another request changed the same thing. Try again.")
                    .caused_by(error)
            }
            Failure::Unavailable { .. } => {
                Self::unavailable("DATABASE_UNAVAILABLE", "The database is not available. Try again shortly.")
                    .caused_by(error)
            }
            Failure::NulInText { .. } => {
                Self::invalid_argument("NUL_IN_TEXT", "A text holds the character U+0000. Send it without.")
                    .caused_by(error)
            }
            _ => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use gatehouse_core::ErrorCode;

    use super::*;

    #[test]
    fn codes_of_both_engines_are_sorted() {
        for conflict in ["40001", "40P01", "5", "6", "261", "517"] {
            assert!(is_conflict(conflict) && !is_away(conflict), "{conflict}");
        }
        for away in
            ["08006", "53300", "57P01", "57P03", "57014", "25006", "7", "10", "13", "14", "778", "1544"]
        {
            assert!(is_away(away) && !is_conflict(away), "{away}");
        }
        for other in ["23505", "42601", "2067", "1555", "1", "11"] {
            assert!(!is_away(other) && !is_conflict(other), "{other}");
            assert_eq!(is_schema_mismatch(other), other == "1", "{other}");
        }
        assert!(is_schema_mismatch("42P01") && !is_schema_mismatch("42501"));
    }

    #[test]
    fn refusals_pass_through_and_the_rest_hides_its_cause() {
        let refusal = gatehouse_core::Error::not_found("JOB_NOT_FOUND", "No such job.");
        assert_eq!(gatehouse_core::Error::from(Error::from(refusal)).reason(), "JOB_NOT_FOUND");
        let away = gatehouse_core::Error::from(Error::from_driver("job.submit", sqlx::Error::PoolTimedOut));
        assert_eq!((away.code(), away.reason()), (ErrorCode::Unavailable, "DATABASE_UNAVAILABLE"));
        assert!(!away.to_string().contains("job.submit") && format!("{away:?}").contains("job.submit"));
    }
}
