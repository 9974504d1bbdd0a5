//! What a statement takes.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{
    ConnectionId, CredentialId, EventId, JobId, OfflineGrantId, PersonId, RequestId, SessionId, TenantId,
    WorkerId,
};
use uuid::Uuid;

/// One argument of a statement. `None` is a NULL that still knows its type: PostgreSQL wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// BIGINT.
    Int(Option<i64>),
    /// BOOLEAN.
    Bool(Option<bool>),
    /// TEXT. May not contain U+0000, which PostgreSQL can't hold.
    Text(Option<String>),
    /// UUID (on SQLite its 16 bytes).
    Uuid(Option<Uuid>),
    /// BYTEA.
    Bytes(Option<Vec<u8>>),
}

/// What [`params!`](crate::params!) takes: integers that fit a BIGINT, `bool`, text, UUIDs and ids, bytes,
/// [`Timestamp`], references to these, and `Option` of these.
pub trait Param {
    /// The NULL of this type.
    const NULL: Value;

    /// The argument that this value is.
    fn into_value(self) -> Value;
}

macro_rules! params_of {
    ($variant:ident: $($type:ty => |$value:ident| $convert:expr;)+) => {$(
        impl Param for $type {
            const NULL: Value = Value::$variant(None);

            fn into_value(self) -> Value {
                let $value = self;
                Value::$variant(Some($convert))
            }
        }
    )+};
}

params_of! { Int:
    i64 => |value| value;
    i32 => |value| value.into();
    u32 => |value| value.into();
    u16 => |value| value.into();
    u8 => |value| value.into();
    Timestamp => |value| value.as_micros();
}
params_of! { Bool: bool => |value| value; }
params_of! { Text:
    String => |value| value;
    &str => |value| value.to_owned();
}
params_of! { Uuid: Uuid => |value| value; }
params_of! { Bytes:
    Vec<u8> => |value| value;
    &[u8] => |value| value.to_vec();
}

impl<const N: usize> Param for [u8; N] {
    const NULL: Value = Value::Bytes(None);

    fn into_value(self) -> Value {
        Value::Bytes(Some(self.to_vec()))
    }
}

impl<T: Param + Clone> Param for &T {
    const NULL: Value = T::NULL;

    fn into_value(self) -> Value {
        self.clone().into_value()
    }
}

impl<T: Param> Param for Option<T> {
    const NULL: Value = T::NULL;

    fn into_value(self) -> Value {
        self.map_or(T::NULL, T::into_value)
    }
}

/// Lets ids (newtypes with `from_uuid` and `as_uuid`) be arguments and be read from UUID columns. The ids of
/// `gatehouse_core` can already; this is for a service's own.
#[macro_export]
macro_rules! uuid_columns {
    ($($id:ty),+ $(,)?) => {$(
        impl $crate::Param for $id {
            const NULL: $crate::Value = $crate::Value::Uuid(None);

            fn into_value(self) -> $crate::Value {
                $crate::Value::Uuid(Some(self.as_uuid()))
            }
        }

        impl $crate::FromColumn for $id {
            fn from_column(row: &$crate::Row, column: &str) -> $crate::Result<Option<Self>> {
                Ok($crate::FromColumn::from_column(row, column)?.map(<$id>::from_uuid))
            }
        }
    )+};
}

uuid_columns![
    ConnectionId,
    CredentialId,
    EventId,
    JobId,
    OfflineGrantId,
    PersonId,
    RequestId,
    SessionId,
    TenantId,
    WorkerId,
];

/// The arguments of a statement, in the order of `$1`, `$2`, …: `params![job.id, &job.name, None::<i64>]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        ::std::vec::Vec::<$crate::Value>::from([$($crate::Param::into_value($value)),*])
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_keep_their_type_even_as_null() {
        let name = String::from("a");
        assert_eq!(
            params![
                1_i64,
                true,
                &name,
                "b",
                None::<&str>,
                None::<Timestamp>,
                None::<JobId>,
                [1_u8, 2],
                &[3_u8][..]
            ],
            [
                Value::Int(Some(1)),
                Value::Bool(Some(true)),
                Value::Text(Some("a".into())),
                Value::Text(Some("b".into())),
                Value::Text(None),
                Value::Int(None),
                Value::Uuid(None),
                Value::Bytes(Some(vec![1, 2])),
                Value::Bytes(Some(vec![3])),
            ]
        );
        assert_eq!(params![], []);
    }
}
