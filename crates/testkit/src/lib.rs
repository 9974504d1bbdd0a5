//! What tests run against: throwaway real servers, fresh databases, and waiting without sleeping. Dev-only.
//!
//! Invariants: no server and no file outlives the process that started it, however that process ends; tests that
//! share a server never meet.

pub mod authority;
pub mod balancer;
pub mod check;
pub mod cluster;
pub mod faults;
pub mod lag;
pub mod oauth_provider;
pub mod openbao;
pub mod port;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod skip;
pub mod test_db;
pub mod traces;
pub mod wait;

pub use authority::Authority;
pub use balancer::{Backend, Balancer};
pub use cluster::{Cluster, Layout};
pub use lag::LagMeter;
pub use oauth_provider::OAuthProvider;
pub use openbao::OpenBao;
pub use port::{free_port, lasting_port};
pub use postgres::Postgres;
pub use proxy::{Flow, Proxy, Weather};
pub use redis::Redis;
pub use skip::skip;
pub use test_db::TestDb;
pub use traces::Traces;
pub use wait::eventually;
