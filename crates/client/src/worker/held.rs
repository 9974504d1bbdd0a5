//! The leases that a session holds, and what of theirs is not yet acknowledged.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use gatehouse_proto::job::v1::work_finish::Outcome;
use gatehouse_proto::job::v1::work_request::Message;
use gatehouse_proto::job::v1::{
    JobEventType, WorkCheckpoint, WorkEvent, WorkFailure, WorkFinish, WorkLease, WorkRelease, WorkRequest,
};
use tokio::sync::{Semaphore, watch};

use super::job::{Stop, Unfinished};

/// A lease: one job under one epoch. The same job may come back under another while the old task still winds down.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) job_id: String,
    pub(super) epoch: i64,
}

/// What a job's task wants of its session.
#[derive(Debug)]
pub(super) enum Command {
    Tell(Key, Told),
    Done(Key, Result<String, Unfinished>),
}

#[derive(Debug)]
pub(super) enum Told {
    Event { event_type: JobEventType, data: String, checkpoint: Vec<u8> },
    Checkpoint(Vec<u8>),
}

struct Held {
    stop: watch::Sender<Option<Stop>>,
    window: Arc<Semaphore>,
    next_write: i64,
    unacknowledged: VecDeque<(i64, Message)>,
    /// Sent when the task has ended; its acknowledgement ends the lease.
    ending: Option<i64>,
    lost: bool,
}

/// All leases of a session. Counts a lease until its task has ended and the service knows how.
#[derive(Default)]
pub(super) struct Leases(HashMap<Key, Held>);

/// The number by which a release is acknowledged.
const RELEASE: i64 = 0;

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is held, and not only its task still winding down.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.0.get(key).is_some_and(|held| !held.lost)
    }

    pub(super) fn any_held(&self) -> bool {
        self.0.values().any(|held| !held.lost)
    }

    /// Takes a lease; returns what its task needs.
    pub(super) fn add(
        &mut self,
        lease: &WorkLease,
        max_unacknowledged: u32,
    ) -> (Key, Arc<Semaphore>, watch::Receiver<Option<Stop>>) {
        let key = Key { job_id: lease.job_id.clone(), epoch: lease.epoch };
        let window = Arc::new(Semaphore::new(usize::try_from(max_unacknowledged).unwrap_or(1)));
        let (stop, stopped) = watch::channel(None);
        let held = Held {
            stop,
            window: Arc::clone(&window),
            next_write: lease.last_write_number + 1,
            unacknowledged: VecDeque::new(),
            ending: None,
            lost: false,
        };
        self.0.insert(key.clone(), held);
        (key, window, stopped)
    }

    /// Asks a job to stop; a stronger reason replaces a weaker one.
    pub(super) fn stop(&mut self, key: &Key, stop: Stop) {
        if let Some(held) = self.0.get(key) {
            held.stop.send_if_modified(|current| {
                let stronger = current.is_none_or(|current| current < stop);
                if stronger {
                    *current = Some(stop);
                }
                stronger
            });
        }
    }

    pub(super) fn stop_all(&mut self, stop: Stop) {
        let keys: Vec<_> = self.0.keys().cloned().collect();
        for key in &keys {
            self.stop(key, stop);
        }
    }

    /// Another may hold the job: nothing more of it is sent. Its entry goes when its task ends.
    pub(super) fn lose(&mut self, key: &Key) {
        self.stop(key, Stop::LeaseLost);
        let Some(held) = self.0.get_mut(key) else { return };
        held.unacknowledged.clear();
        held.lost = true;
        if held.ending.is_some() {
            self.0.remove(key);
        }
    }

    pub(super) fn lose_all(&mut self) {
        let keys: Vec<_> = self.0.keys().cloned().collect();
        for key in &keys {
            self.lose(key);
        }
    }

    /// Numbers a write and keeps it until it is acknowledged; `None` if the lease is lost.
    pub(super) fn tell(&mut self, key: &Key, told: Told) -> Option<WorkRequest> {
        let held = self.0.get_mut(key).filter(|held| !held.lost)?;
        let write_number = held.next_write;
        held.next_write += 1;
        let (job_id, epoch) = (key.job_id.clone(), key.epoch);
        let message = match told {
            Told::Event { event_type, data, checkpoint } => Message::Event(WorkEvent {
                job_id,
                epoch,
                r#type: event_type.into(),
                data_json: data,
                write_number,
                checkpoint: checkpoint.into(),
            }),
            Told::Checkpoint(checkpoint) => Message::Checkpoint(WorkCheckpoint {
                job_id,
                epoch,
                checkpoint: checkpoint.into(),
                write_number,
            }),
        };
        held.unacknowledged.push_back((write_number, message.clone()));
        Some(WorkRequest { message: Some(message) })
    }

    /// The task has ended: what to tell the service about it; `None` if the lease is lost and so over.
    pub(super) fn end(&mut self, key: &Key, verdict: Result<String, Unfinished>) -> Option<WorkRequest> {
        let held = self.0.get_mut(key)?;
        if held.lost {
            self.0.remove(key);
            return None;
        }
        let (job_id, epoch) = (key.job_id.clone(), key.epoch);
        let outcome = match verdict {
            Ok(result) => Some(Outcome::ResultJson(result)),
            Err(Unfinished::Failed(failure)) => Some(Outcome::Failure(WorkFailure {
                reason: failure.reason,
                message: failure.message,
                retryable: failure.retryable,
            })),
            Err(Unfinished::Stopped(Stop::Cancelled)) => Some(Outcome::Cancelled(true)),
            Err(Unfinished::Stopped(Stop::Draining | Stop::LeaseLost)) => None,
        };
        let (number, message) = match outcome {
            Some(outcome) => {
                let write_number = held.next_write;
                held.next_write += 1;
                let finish = WorkFinish { job_id, epoch, write_number, outcome: Some(outcome) };
                (write_number, Message::Finish(finish))
            }
            None => (RELEASE, Message::Release(WorkRelease { job_id, epoch })),
        };
        held.ending = Some(number);
        held.unacknowledged.push_back((number, message.clone()));
        Some(WorkRequest { message: Some(message) })
    }

    /// The service has stored a write; `true` if that ends the lease.
    pub(super) fn acknowledge(&mut self, key: &Key, write_number: i64) -> bool {
        let Some(held) = self.0.get_mut(key) else { return false };
        if held.ending == Some(write_number) {
            self.0.remove(key);
            return true;
        }
        while held
            .unacknowledged
            .front()
            .is_some_and(|(number, _)| *number != RELEASE && *number <= write_number)
        {
            held.unacknowledged.pop_front();
            held.window.add_permits(1);
        }
        false
    }

    /// After the session was taken up: keeps the leases that the service still counts, loses the others, and returns
    /// what must be sent again.
    pub(super) fn reconcile(&mut self, still_held: &[WorkLease]) -> Vec<WorkRequest> {
        let stored: HashMap<Key, i64> = still_held
            .iter()
            .map(|lease| (Key { job_id: lease.job_id.clone(), epoch: lease.epoch }, lease.last_write_number))
            .collect();
        let mine: Vec<_> = self.0.keys().cloned().collect();
        let mut again = Vec::new();
        for key in mine {
            let Some(last_write) = stored.get(&key) else {
                self.lose(&key);
                continue;
            };
            self.acknowledge(&key, *last_write);
            if let Some(held) = self.0.get(&key) {
                again.extend(
                    held.unacknowledged
                        .iter()
                        .map(|(_, message)| WorkRequest { message: Some(message.clone()) }),
                );
            }
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(job: &str, epoch: i64, last_write_number: i64) -> WorkLease {
        WorkLease { job_id: job.into(), epoch, last_write_number, ..WorkLease::default() }
    }

    fn event() -> Told {
        Told::Event { event_type: JobEventType::Progress, data: "{}".into(), checkpoint: Vec::new() }
    }

    fn write_number(request: &WorkRequest) -> i64 {
        match request.message.as_ref().unwrap() {
            Message::Event(event) => event.write_number,
            Message::Finish(finish) => finish.write_number,
            Message::Release(_) => 0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_in_order() {
        let mut leases = Leases::default();
        let (key, window, _stop) = leases.add(&lease("a", 3, 0), 8);
        let numbers: Vec<_> = (0..4).map(|_| write_number(&leases.tell(&key, event()).unwrap())).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert!(!leases.acknowledge(&key, 1));
        leases.end(&key, Ok("1".into())).unwrap();
        let again = leases.reconcile(&[lease("a", 3, 2)]);
        assert_eq!(again.iter().map(write_number).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(window.available_permits(), 8 + 2);
        assert!(leases.acknowledge(&key, 5));
        assert!(leases.is_empty());
    }

    #[test]
    fn a_lease_that_the_service_no_longer_counts_is_lost() {
        let mut leases = Leases::default();
        let (key, _, stop) = leases.add(&lease("a", 3, 0), 1);
        leases.tell(&key, event());
        assert!(leases.reconcile(&[lease("a", 4, 0)]).is_empty(), "another epoch is another lease");
        assert_eq!(*stop.borrow(), Some(Stop::LeaseLost));
        assert!(leases.tell(&key, event()).is_none());
        assert_eq!(leases.len(), 1, "it counts until its task has ended");
        // So where the service still counts it, it is given back.
        assert!(!leases.holds(&key) && !leases.any_held());
        assert!(leases.end(&key, Err(Unfinished::Stopped(Stop::LeaseLost))).is_none());
        assert!(leases.is_empty());
    }

    #[test]
    fn a_stronger_reason_to_stop_wins() {
        let mut leases = Leases::default();
        let (key, _, stop) = leases.add(&lease("a", 1, 0), 1);
        leases.stop_all(Stop::Draining);
        leases.stop(&key, Stop::Cancelled);
        leases.stop(&key, Stop::Draining);
        assert_eq!(*stop.borrow(), Some(Stop::Cancelled));
        leases.end(&key, Err(Stop::Draining.into())).unwrap();
        assert!(leases.acknowledge(&key, 0), "a release is acknowledged by 0");
    }
}
