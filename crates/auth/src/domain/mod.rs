//! Types and rules without a database, a transport or a task: everything here is a function of its arguments.

pub mod api_key;
pub mod email;
pub mod keys;
pub mod password;
pub mod password_hash;
pub mod refresh;
pub mod roles;
pub mod signing;
pub mod text;
