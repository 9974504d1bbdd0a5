//! Which calls may be made twice: read from the standard option that stands beside each method.

use std::collections::HashSet;
use std::sync::LazyLock;

use prost_types::method_options::IdempotencyLevel;
use prost_types::{FileDescriptorSet, MethodOptions};

use prost::Message as _;

use crate::FILE_DESCRIPTOR_SET;

static REPEATABLE: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)
        .expect("the build script wrote these descriptors and tests read them");
    let mut paths = HashSet::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let level = method
                    .options
                    .as_ref()
                    .map_or(IdempotencyLevel::IdempotencyUnknown, MethodOptions::idempotency_level);
                if level != IdempotencyLevel::IdempotencyUnknown {
                    paths.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
    }
    paths
});

/// Whether the method at `path` (`/gatehouse.job.v1.JobService/GetJob`) declares that a second, equal call does no more
/// than the first (`idempotency_level = NO_SIDE_EFFECTS` or `IDEMPOTENT`). Unknown paths declare nothing.
#[must_use]
pub fn is_repeatable(path: &str) -> bool {
    REPEATABLE.contains(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another one must be a decision, not an accident: it fails here until it is written down. What only reads is
    /// told by its name.
    #[test]
    fn those_that_write_and_may_be_repeated_are_these() {
        let reads = |name: &str| {
            ["Get", "List", "Watch", "WhoAmI", "Introspect"].iter().any(|verb| name.starts_with(verb))
        };
        let mut writes: Vec<_> = REPEATABLE
            .iter()
            .filter_map(|path| path.rsplit('/').next())
            .filter(|name| !reads(name))
            .collect();
        writes.sort_unstable();
        assert_eq!(
            writes,
            [
                // By event id.
                "AppendEvents",
                "CancelJob",
                // New tokens, of which the first is forgotten.
                "ExchangeToken",
                "IssueToken",
                // A family has one successor, whoever asks.
                "Refresh",
                "RevokeToken",
            ]
        );
        assert!(is_repeatable("/gatehouse.job.v1.JobService/GetJob"));
        assert!(!is_repeatable("/gatehouse.job.v1.JobService/SubmitJob"));
        assert!(!is_repeatable("/gatehouse.auth.v1.AccountService/SignIn"));
    }
}
