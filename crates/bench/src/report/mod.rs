//! What is told at the end: a table, JSON, and the difference from last time.

pub(crate) mod compare;
pub(crate) mod markdown;

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::figure::Figure;
use crate::machine::Machine;

/// Everything of one session, as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) runs: usize,
    /// Seconds for which each figure was measured in each run.
    pub(crate) seconds: f64,
    pub(crate) figures: Vec<Figure>,
}

impl Report {
    /// # Errors
    /// If the file can't be read, or is no report.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("{} can't be read: run `make bench` first", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no saved run", file.display()))
    }

    /// Saves it; figures of an earlier report of the same build that were not measured this time stay.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        let mut whole = self.clone();
        if let Ok(before) = Self::read(file)
            && before.machine.build == self.machine.build
        {
            let kept = before
                .figures
                .into_iter()
                .filter(|old| !self.figures.iter().any(|figure| figure.key == old.key));
            whole.figures.extend(kept);
        }
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let part = file.with_extension("part");
        std::fs::write(&part, serde_json::to_string_pretty(&whole)? + "\n")?;
        std::fs::rename(&part, file).with_context(|| format!("{} can't be written", file.display()))
    }
}
