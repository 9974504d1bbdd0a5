//! The events of a job as one reader got them: each once, in order, and every iteration of the work once.

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// One event as the reader of a job's stream got it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The stream's `id`.
    pub id: u64,
    /// The stream's `event`.
    pub name: String,
    /// The stream's `data`.
    pub data: Value,
}

impl Seen {
    /// An event with the fields of a stream as they stand there.
    ///
    /// # Errors
    /// The id is no number, or the data is no JSON.
    pub fn read(id: &str, name: String, data: &str) -> anyhow::Result<Self> {
        let id = id.parse().with_context(|| format!("the event id {id:?} is no number"))?;
        let data = serde_json::from_str(data).context("an event's data is no JSON")?;
        Ok(Self { id, name, data })
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.name == "end"
    }
}

/// What a whole stream came to.
#[derive(Clone, Debug)]
pub struct Told {
    /// Id of the `end` event.
    pub last: u64,
    /// How the job ended.
    pub state: String,
    /// Attempts that began.
    pub started: u64,
    /// Data of the progress events.
    pub progress: Vec<Value>,
}

/// Checks that the reader got every event of a job once, in order, and every iteration once, in order.
///
/// # Errors
/// What is wrong, with the id at which it is.
pub fn check_events(seen: &[Seen]) -> anyhow::Result<Told> {
    let mut started = 0;
    let mut progress: Vec<Value> = Vec::new();
    let mut notices = 0;
    for (expected, event) in (1..).zip(seen) {
        ensure!(event.id >= expected, "event {} came again after event {}", event.id, expected - 1);
        ensure!(event.id == expected, "a gap: event {} came after event {}", event.id, expected - 1);
        match event.name.as_str() {
            "started" => started += 1,
            "notice" => notices += 1,
            "progress" => {
                let iteration = event.data["iteration"].as_u64().context("a progress without iteration")?;
                let due = progress.len() as u64 + 1;
                ensure!(
                    iteration == due,
                    "event {} tells of iteration {iteration}, and {due} is due: an attempt did not go on where the last was",
                    event.id
                );
                progress.push(event.data.clone());
            }
            "end" => ensure!(event.id == seen.len() as u64, "event {} came after the end", event.id + 1),
            _ => {}
        }
    }
    let end = seen.last().filter(|event| event.name == "end").context("the stream has no end")?;
    ensure!(notices == 1, "the caller was told {notices} times, not once, that the iterations were clamped");
    let state = end.data["state"].as_str().context("an end without state")?.to_owned();
    Ok(Told { last: end.id, state, started, progress })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stream(ids: &[u64]) -> Vec<Seen> {
        let mut iteration = 0;
        let event = |id: &u64| {
            let (name, data) = match id {
                1 => ("queued", json!({})),
                2 => ("started", json!({"attempt": 1})),
                3 => ("notice", json!({})),
                9 => ("end", json!({"state": "succeeded"})),
                _ => {
                    iteration += 1;
                    ("progress", json!({"iteration": iteration}))
                }
            };
            Seen { id: *id, name: name.to_owned(), data }
        };
        ids.iter().map(event).collect()
    }

    fn fault(seen: &[Seen]) -> String {
        check_events(seen).expect_err("a planted fault was not found").to_string()
    }

    #[test]
    fn a_whole_stream_passes() {
        let told = check_events(&stream(&[1, 2, 3, 4, 5, 6, 7, 8, 9])).unwrap();
        assert_eq!((told.last, told.started, told.progress.len()), (9, 1, 5));
        assert_eq!(told.state, "succeeded");
    }

    #[test]
    fn a_gap_is_found() {
        assert!(fault(&stream(&[1, 2, 3, 4, 6, 7, 8, 9])).contains("a gap: event 6"));
        assert!(fault(&stream(&[2, 3])).contains("a gap: event 2"));
    }

    #[test]
    fn a_repeat_is_found() {
        assert!(fault(&stream(&[1, 2, 3, 4, 5, 5, 6, 7, 8, 9])).contains("event 5 came again"));
        assert!(fault(&stream(&[1, 2, 3, 4, 5, 3, 6])).contains("event 3 came again"));
    }

    #[test]
    fn a_missing_end_is_found() {
        assert!(fault(&stream(&[1, 2, 3, 4])).contains("no end"));
        assert!(fault(&[]).contains("no end"));
    }

    #[test]
    fn what_comes_after_the_end_is_found() {
        let mut seen = stream(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        seen.push(Seen { id: 10, ..seen[8].clone() });
        assert!(fault(&seen).contains("event 10 came after the end"));
    }

    #[test]
    fn each_attempt_counts_and_each_event_says_what_it_has_to() {
        let mut seen = stream(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        "started".clone_into(&mut seen[0].name);
        assert_eq!(check_events(&seen).unwrap().started, 2);
        seen[4].data = json!({});
        assert!(fault(&seen).contains("without iteration"));
        seen[4].data = json!({"iteration": 2});
        seen[8].data = json!({});
        assert!(fault(&seen).contains("without state"));
    }

    #[test]
    fn an_iteration_told_twice_is_found() {
        let mut seen = stream(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        seen[5].data = json!({"iteration": 2});
        assert!(fault(&seen).contains("iteration 2, and 3 is due"));
    }

    #[test]
    fn a_notice_told_never_or_twice_is_found() {
        let mut seen = stream(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        "stalled".clone_into(&mut seen[2].name);
        assert!(fault(&seen).contains("told 0 times"));
        let mut seen = stream(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        "notice".clone_into(&mut seen[7].name);
        assert!(fault(&seen).contains("told 2 times"));
    }
}
