//! Statements as named constants.

/// One statement: its name (for logs, errors and tests) and its text. Made by [`sql!`](crate::sql!).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sql {
    name: &'static str,
    postgres: &'static str,
    sqlite: &'static str,
}

impl Sql {
    /// A statement whose text both engines take.
    #[must_use]
    pub const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, postgres: text, sqlite: text }
    }

    /// A statement that can't be written once (`FOR UPDATE SKIP LOCKED`). Each one is a place where the engines
    /// can drift apart: use it only where no portable text does the work.
    #[must_use]
    pub const fn dialects(name: &'static str, postgres: &'static str, sqlite: &'static str) -> Self {
        Self { name, postgres, sqlite }
    }

    /// The constant's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The text for PostgreSQL.
    #[must_use]
    pub const fn postgres(&self) -> &'static str {
        self.postgres
    }

    /// The text for SQLite.
    #[must_use]
    pub const fn sqlite(&self) -> &'static str {
        self.sqlite
    }

    /// Whether the engines are given different texts.
    #[must_use]
    pub fn has_two_texts(&self) -> bool {
        self.postgres != self.sqlite
    }
}

/// Declares statements as constants of type [`Sql`] and, beside them, `pub(crate) const ALL: &[Sql]` of all.
///
/// Use it once in a module. A text is a literal (or `concat!` of literals). A second text for SQLite follows a
/// comma:
///
/// ```
/// gatehouse_db::sql! {
///     /// The next jobs that nobody holds.
///     pub CLAIM = "SELECT id FROM jobs WHERE holder IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED",
///         sqlite: "SELECT id FROM jobs WHERE holder IS NULL ORDER BY id LIMIT $1";
///     pub COUNT = "SELECT COUNT(*) AS jobs FROM jobs";
/// }
/// assert_eq!(ALL.len(), 2);
/// assert_eq!(COUNT.name(), "COUNT");
/// ```
#[macro_export]
macro_rules! sql {
    ($($(#[$meta:meta])* $visibility:vis $name:ident = $text:expr $(, sqlite: $sqlite:expr)?;)+) => {
        $(
            $(#[$meta])*
            #[doc = concat!("`", $text, "`")]
            $visibility const $name: $crate::Sql = $crate::sql!(@one $name, $text $(, $sqlite)?);
        )+

        /// Every statement of this module.
        pub(crate) const ALL: &[$crate::Sql] = &[$($name),+];
    };
    (@one $name:ident, $text:expr) => { $crate::Sql::new(stringify!($name), $text) };
    (@one $name:ident, $text:expr, $sqlite:expr) => { $crate::Sql::dialects(stringify!($name), $text, $sqlite) };
}

#[cfg(test)]
mod tests {
    sql! {
        ONE = "SELECT 1 AS one";
        TWO = "SELECT 2 AS two FOR UPDATE", sqlite: "SELECT 2 AS two";
    }

    #[test]
    fn constants_know_their_names_and_texts() {
        assert_eq!(ALL, [ONE, TWO]);
        assert_eq!((ONE.name(), ONE.has_two_texts()), ("ONE", false));
        assert_eq!((TWO.name(), TWO.has_two_texts(), TWO.sqlite()), ("TWO", true, "SELECT 2 AS two"));
    }
}
