//! What processes cost: processor time and memory, from `/proc`.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};

/// Processor time so far, microseconds, by the name that a process goes by here.
pub(crate) type Spent = BTreeMap<String, f64>;

/// The processes whose time is told apart. Those below this one that are not named go by their program's name, so
/// that PostgreSQL's many count as one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processes(HashMap<i32, String>);

/// Fields of `/proc/PID/stat`.
struct Stat {
    name: String,
    parent: i32,
    /// User and system time, in ticks.
    ticks: u64,
    /// The same of its children that ended and were waited for.
    ended: u64,
}

impl Processes {
    /// Calls the process `id` `name`.
    pub(crate) fn name(&mut self, id: u32, name: &str) {
        if let Ok(id) = i32::try_from(id) {
            self.0.insert(id, name.to_owned());
        }
    }

    /// What this process (`load`), all below it and the commands that it ran to their end (`commands`) have spent.
    ///
    /// # Errors
    /// If there is no `/proc`.
    pub(crate) fn spent(&self) -> Result<Spent> {
        let own = i32::try_from(std::process::id()).context("no process id")?;
        let mut stats = HashMap::new();
        for entry in std::fs::read_dir("/proc").context("there is no /proc")? {
            let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // It may have ended since.
            if let Some(stat) = read(id) {
                stats.insert(id, stat);
            }
        }
        let mut spent = Spent::new();
        for (id, stat) in &stats {
            let name = if *id == own {
                spent.insert("commands".to_owned(), micros(stat.ended));
                "load"
            } else if let Some(name) = self.0.get(id) {
                name
            } else if is_below(own, *id, &stats) {
                match stat.name.as_str() {
                    "postgres" => "postgres",
                    "redis-server" => "redis",
                    _ => continue,
                }
            } else {
                continue;
            };
            // PostgreSQL's workers come and go; the children of all others are counted by themselves.
            let ticks = stat.ticks + if name == "postgres" { stat.ended } else { 0 };
            *spent.entry(name.to_owned()).or_default() += micros(ticks);
        }
        Ok(spent)
    }
}

fn is_below(ancestor: i32, mut id: i32, stats: &HashMap<i32, Stat>) -> bool {
    // Deeper than anything here; ids that were used again can't make it endless.
    for _ in 0..16 {
        match stats.get(&id) {
            Some(stat) if stat.parent == ancestor => return true,
            Some(stat) => id = stat.parent,
            None => return false,
        }
    }
    false
}

fn read(id: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may hold anything, parentheses too: it ends at the last one.
    let (start, rest) = text.rsplit_once(')')?;
    let name = start.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    let (ticks, ended) = (number(11)? + number(12)?, number(13)? + number(14)?);
    Some(Stat { name, parent: fields.get(1)?.parse().ok()?, ticks, ended })
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn micros(ticks: u64) -> f64 {
    // USER_HZ is 100 on every Linux that this runs on.
    ticks as f64 * 10_000.0
}

/// Memory of a process, shared pages by their share, KiB.
///
/// # Errors
/// If the process ended.
pub(crate) fn memory_kib(id: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))
        .with_context(|| format!("the memory of process {id} can't be read"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("there is no Pss")?;
    line.trim().trim_end_matches("kB").trim().parse().context("Pss is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_spends_time_and_has_memory() {
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 60 {
            std::hint::black_box(began.elapsed());
        }
        let command = "n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done";
        assert!(std::process::Command::new("sh").args(["-c", command]).status().unwrap().success());
        let spent = Processes::default().spent().unwrap();
        assert!(spent["load"] >= 10_000.0 && spent["commands"] >= 10_000.0, "{spent:?}");
        assert!(memory_kib(std::process::id()).unwrap() > 100.0);
    }
}
