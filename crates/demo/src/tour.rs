//! What the tour goes through: a Gatehouse that the demo started, or one that runs already.

use std::path::PathBuf;

/// The file with the checkpoint that the tour keeps, in its folder.
pub(crate) const KEPT_CHECKPOINT: &str = "checkpoint-kept-elsewhere.txt";
/// The file with the key that checkpoints are signed with.
pub(crate) const KEPT_KEY: &str = "verifier-key-kept-elsewhere.txt";

/// Where everything is, and who goes.
pub(crate) struct Tour {
    /// Where the gateway is.
    pub(crate) gateway: String,
    /// PEM files of certificates that are believed beside those of the machine.
    pub(crate) authorities: Vec<PathBuf>,
    /// Who goes.
    pub(crate) visitor: Visitor,
    /// The protected resource of the upstream `demo`.
    pub(crate) upstream_api: String,
    /// Folder for what is kept.
    pub(crate) data: PathBuf,
    /// How the audit log is proven.
    pub(crate) proof: Proof,
    /// Where a person looks next: what, and where it is.
    pub(crate) next: Vec<(&'static str, String)>,
}

/// Who goes on the tour.
pub(crate) enum Visitor {
    /// Somebody new, who makes a tenant of their own.
    New,
    /// Somebody who has an account.
    Known {
        /// Their address.
        email: String,
        /// Their password.
        password: String,
    },
}

/// Who runs `verify-audit-chain`, which reads the database itself.
pub(crate) enum Proof {
    /// The tour, on the data folder of this machine.
    Here {
        /// The gatehouse program.
        program: PathBuf,
        /// The data folder.
        data: PathBuf,
    },
    /// Whoever can reach the database, with what the tour keeps.
    Elsewhere,
}
