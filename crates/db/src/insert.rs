//! One INSERT of many rows.

use crate::{Result, Sql, Tx, Value};

/// How many rows one statement holds, largest first. Each size is a statement that the server has prepared; what the
/// larger leave over, the smaller take, so that any number of rows needs few.
const GROUPS: [usize; 4] = [64, 16, 4, 1];
/// SQLite takes so many parameters in a statement; PostgreSQL twice as many.
const MOST_PARAMETERS: usize = 32_766;

/// An INSERT of as many rows as there are, in a bounded number of statements. Made by [`insert!`](crate::insert!), run
/// by [`Tx::insert`].
#[derive(Clone, Copy, Debug)]
pub struct Insert {
    groups: [Sql; GROUPS.len()],
}

impl Insert {
    /// For [`insert!`](crate::insert!).
    #[doc(hidden)]
    #[must_use]
    pub const fn new(groups: [Sql; GROUPS.len()]) -> Self {
        Self { groups }
    }

    /// Its statements, for the test that prepares every one.
    #[must_use]
    pub const fn all(&self) -> &[Sql] {
        &self.groups
    }
}

impl Tx {
    /// Inserts `rows`, each the arguments of one row in the order of the columns, and says how many were inserted:
    /// fewer where the statement's end lets conflicts pass. Rows of one call are in the order given, but a conflict
    /// stops only the rest of its group.
    pub async fn insert(&mut self, insert: &Insert, rows: Vec<Vec<Value>>) -> Result<u64> {
        let (mut left, mut rows) = (rows.len(), rows.into_iter());
        let mut inserted = 0;
        for (size, sql) in GROUPS.into_iter().zip(&insert.groups) {
            while left >= size {
                inserted += self.execute(sql, rows.by_ref().take(size).flatten().collect()).await?;
                left -= size;
            }
        }
        Ok(inserted)
    }
}

/// Declares an [`Insert`]: the table, its columns, and what follows the rows.
///
/// ```
/// gatehouse_db::insert! {
///     /// Things; those that are there already stay.
///     pub ADD_THINGS = "INSERT INTO things"(id, name) "ON CONFLICT (id) DO NOTHING";
/// }
/// assert_eq!(ADD_THINGS.all().len(), 4);
/// let one = "INSERT INTO things (id, name) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING";
/// assert_eq!((ADD_THINGS.all()[3].name(), ADD_THINGS.all()[3].sqlite()), ("ADD_THINGS_1", one));
/// ```
#[macro_export]
macro_rules! insert {
    ($(
        $(#[$meta:meta])*
        $visibility:vis $name:ident = $insert:literal($first:ident $(, $column:ident)*) $($end:literal)?;
    )+) => {$(
        $(#[$meta])*
        $visibility const $name: $crate::Insert = $crate::Insert::new([
            $crate::insert!(@group 64, $name, $insert, $first $(, $column)*; $($end)?),
            $crate::insert!(@group 16, $name, $insert, $first $(, $column)*; $($end)?),
            $crate::insert!(@group 4, $name, $insert, $first $(, $column)*; $($end)?),
            $crate::insert!(@group 1, $name, $insert, $first $(, $column)*; $($end)?),
        ]);
    )+};
    (@group $rows:literal, $name:ident, $insert:literal, $first:ident $(, $column:ident)*; $($end:literal)?) => {{
        const BEFORE: &str = concat!($insert, " (", stringify!($first) $(, ", ", stringify!($column))*, ") VALUES ");
        const COLUMNS: usize = [stringify!($first) $(, stringify!($column))*].len();
        const END: &str = concat!("" $(, " ", $end)?);
        const LENGTH: usize = $crate::private::insert_length(BEFORE, COLUMNS, $rows, END);
        const TEXT: &[u8] = &$crate::private::insert_text::<LENGTH>(BEFORE, COLUMNS, $rows, END);
        $crate::Sql::new(concat!(stringify!($name), "_", $rows), $crate::private::insert_str(TEXT))
    }};
}

/// The text's length in bytes.
///
/// # Panics
/// When it is compiled, if there are more parameters than an engine takes.
#[must_use]
pub const fn length(before: &str, columns: usize, rows: usize, end: &str) -> usize {
    assert!(columns * rows <= MOST_PARAMETERS, "too many parameters");
    let mut length = before.len() + end.len() + rows * "()".len() + (rows - 1) * ", ".len();
    let mut parameter = 1;
    while parameter <= columns * rows {
        length += "$".len() + digits(parameter);
        parameter += 1;
    }
    length + rows * (columns - 1) * ", ".len()
}

/// `before`, a group of parameters for each row, `end`.
#[must_use]
pub const fn text<const LENGTH: usize>(before: &str, columns: usize, rows: usize, end: &str) -> [u8; LENGTH] {
    let (mut out, mut at) = (put([0; LENGTH], 0, before.as_bytes()), before.len());
    let mut parameter = 0;
    while parameter < columns * rows {
        let before: &[u8] = match (parameter, parameter.is_multiple_of(columns)) {
            (0, _) => b"($",
            (_, true) => b"), ($",
            (_, false) => b", $",
        };
        out = put(out, at, before);
        at += before.len();
        parameter += 1;
        let (mut rest, digits) = (parameter, digits(parameter));
        let mut digit = digits;
        while digit > 0 {
            digit -= 1;
            out[at + digit] = b"0123456789"[rest % 10];
            rest /= 10;
        }
        at += digits;
    }
    out = put(out, at, b")");
    put(out, at + 1, end.as_bytes())
}

/// The bytes as text.
///
/// # Panics
/// Never: pieces of text put together are text.
#[must_use]
pub const fn as_str(text: &'static [u8]) -> &'static str {
    match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(_) => panic!("pieces of text put together are text"),
    }
}

const fn digits(number: usize) -> usize {
    (number.ilog10() + 1) as usize
}

const fn put<const LENGTH: usize>(mut out: [u8; LENGTH], at: usize, text: &[u8]) -> [u8; LENGTH] {
    let mut place = 0;
    while place < text.len() {
        out[at + place] = text[place];
        place += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    insert! {
        ADD = "INSERT INTO things"(id, name, size) "ON CONFLICT (id) DO NOTHING";
        PLAIN = "INSERT INTO things"(id);
    }

    #[test]
    fn each_row_has_parameters_of_its_own() {
        let names: Vec<_> = ADD.all().iter().map(crate::Sql::name).collect();
        assert_eq!(names, ["ADD_64", "ADD_16", "ADD_4", "ADD_1"]);
        assert_eq!(
            ADD.all()[2].postgres(),
            "INSERT INTO things (id, name, size) VALUES ($1, $2, $3), ($4, $5, $6), ($7, $8, $9), ($10, $11, $12) \
             ON CONFLICT (id) DO NOTHING"
        );
        assert!(ADD.all()[0].sqlite().contains("($190, $191, $192) ON"));
        assert_eq!(PLAIN.all()[3].postgres(), "INSERT INTO things (id) VALUES ($1)");
    }
}
