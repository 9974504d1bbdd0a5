//! Where the figures come from.

use serde::{Deserialize, Serialize};

/// The machine and the build, as they are saved with the figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `release`, or `debug`: then the figures mean nothing.
    pub(crate) build: String,
    pub(crate) cores: usize,
    pub(crate) processor: String,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// Load average of the minute before: what else ran.
    pub(crate) load_before: String,
    /// The commit that was checked out, if this is a repository.
    pub(crate) commit: String,
}

impl Machine {
    /// This one, now.
    pub(crate) fn look() -> Self {
        let file = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = field(&file("/proc/meminfo"), "MemTotal");
        Self {
            build: build().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            processor: field(&file("/proc/cpuinfo"), "model name"),
            memory_mib: memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: file("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            commit: commit().unwrap_or_default(),
        }
    }

    /// For the head of a table.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} cores ({}), {} MiB, Linux {}, load average before {}, {} build{}",
            self.cores,
            if self.processor.is_empty() { "unknown processor" } else { &self.processor },
            self.memory_mib,
            self.kernel,
            self.load_before,
            self.build,
            if self.commit.is_empty() { String::new() } else { format!(" of {}", self.commit) },
        )
    }
}

const fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// Whether the figures of this build mean anything.
pub(crate) const fn is_release() -> bool {
    !cfg!(debug_assertions)
}

fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
