//! Which threads at work belong to a process and to those that it started, and those started, and so on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// State and parent of a process or thread, as its `stat` file says.
fn stat(path: &str) -> Option<(char, u32)> {
    let text = fs::read_to_string(path).ok()?;
    // The name stands in parentheses, and may hold some.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Names in a folder of `/proc` that are numbers.
fn numbers(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The process and its descendants. One whose parent ended is no longer among them.
fn family(of: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in numbers("/proc") {
        if let Some((_, parent)) = stat(&format!("/proc/{process}/stat")) {
            children.entry(parent).or_default().push(process);
        }
    }
    let (mut family, mut next) = (BTreeSet::from([of]), vec![of]);
    while let Some(process) = next.pop() {
        next.extend(
            children.remove(&process).unwrap_or_default().into_iter().filter(|child| family.insert(*child)),
        );
    }
    family
}

/// How many threads of the process and its descendants run or want to.
pub(super) fn running(of: u32) -> i64 {
    let threads = family(of).into_iter().flat_map(|process| {
        let folder = format!("/proc/{process}/task");
        numbers(&folder).into_iter().map(move |thread| format!("{folder}/{thread}/stat"))
    });
    let running = threads.filter(|thread| stat(thread).is_some_and(|(state, _)| state == 'R')).count();
    i64::try_from(running).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_is_busy_is_counted_with_whoever_started_it() {
        // One that starts one that is busy, and waits for it.
        let busy = "sh -c 'while :; do :; done' & echo $!; wait";
        let mut child = Command::new("sh").args(["-c", busy]).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        let output = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut told).unwrap();
        let grandchild: u32 = told.trim().parse().unwrap();
        let busy = nix::unistd::Pid::from_raw(grandchild.try_into().unwrap());
        let is_ours = family(std::process::id()).is_superset(&BTreeSet::from([child.id(), grandchild]));
        let began = std::time::Instant::now();
        while running(child.id()) == 0 && began.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        let (here, alone) = (running(std::process::id()), running(child.id()));
        nix::sys::signal::kill(busy, nix::sys::signal::Signal::SIGTERM).unwrap();
        child.wait().unwrap();
        assert!(is_ours);
        // Whoever counts runs too.
        assert!(here >= 2 && alone == 1, "{here}, {alone}");
    }
}
