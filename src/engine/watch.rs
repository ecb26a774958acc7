//! Watching the names under a prefix.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{Engine, OrgState};
use crate::envelope::Value;
use crate::error::Result;

/// The watches of one org.
#[derive(Default)]
pub(crate) struct Watchers {
    count: AtomicUsize,
    watches: Mutex<Vec<Weak<Queue>>>,
}

struct Queue {
    prefix: Vec<u8>,
    state: Mutex<QueueState>,
    grew: Condvar,
}

#[derive(Default)]
struct QueueState {
    names: VecDeque<Arc<[u8]>>,
    waiting: HashSet<Arc<[u8]>>,
    closed: bool,
}

impl Watchers {
    /// Tells the watches that `name` was written or deleted, after it was.
    pub(crate) fn changed(&self, name: &[u8]) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|watch| match watch.upgrade() {
            Some(queue) => {
                queue.push(name);
                true
            }
            None => false,
        });
        self.count.store(watches.len(), Ordering::Release);
    }

    pub(crate) fn close(&self) {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in watches.iter().filter_map(Weak::upgrade) {
            queue.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
            queue.grew.notify_all();
        }
    }

    fn add(&self, queue: &Arc<Queue>) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.push(Arc::downgrade(queue));
        self.count.store(watches.len(), Ordering::Release);
    }
}

impl Queue {
    fn push(&self, name: &[u8]) {
        if !name.starts_with(&self.prefix) {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.waiting.contains(name) {
            let name: Arc<[u8]> = Arc::from(name);
            state.waiting.insert(Arc::clone(&name));
            state.names.push_back(name);
            self.grew.notify_one();
        }
    }
}

/// A name that changed, with its value when the change was taken from the watch.
#[derive(Clone, Debug)]
pub struct Change {
    /// The record's name.
    pub name: Vec<u8>,
    /// Its value now; `None` if it is deleted.
    pub value: Option<Value>,
}

/// The changes under a prefix, from the moment that the watch was made.
///
/// Each change is told with the value that the record has when it is taken: the last change
/// always brings the newest value, and several changes of one name that were not taken yet are
/// told as one. So a slow watcher holds each name once, and no value. Re-encryption by a
/// rotation is no change.
///
/// Iterating waits for the next change, and ends when the store is closed.
pub struct Watch {
    engine: Arc<Engine>,
    org: Arc<OrgState>,
    queue: Arc<Queue>,
}

impl Watch {
    pub(crate) fn new(engine: Arc<Engine>, org: Arc<OrgState>, prefix: &[u8]) -> Self {
        let queue = Arc::new(Queue {
            prefix: prefix.to_vec(),
            state: Mutex::default(),
            grew: Condvar::new(),
        });
        org.watchers.add(&queue);
        Self { engine, org, queue }
    }

    /// Waits at most `timeout` for the next change; `None` if none came or the store is closed.
    ///
    /// # Errors
    /// Those of [`Org::get`](crate::Org::get), for the record that changed.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Change>> {
        self.next_change(Instant::now().checked_add(timeout))
    }

    /// What has changed so far, without waiting and without its value.
    #[cfg(feature = "backup")]
    pub(crate) fn take_names(&self) -> Vec<Arc<[u8]>> {
        let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.clear();
        std::mem::take(&mut state.names).into()
    }

    fn next_change(&self, until: Option<Instant>) -> Result<Option<Change>> {
        let Some(name) = self.next_name(until) else { return Ok(None) };
        let value = self.engine.read(&self.org, &name)?;
        Ok(Some(Change { name: name.to_vec(), value }))
    }

    fn next_name(&self, until: Option<Instant>) -> Option<Arc<[u8]>> {
        let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(name) = state.names.pop_front() {
                state.waiting.remove(&name);
                return Some(name);
            }
            if state.closed {
                return None;
            }
            state = match until {
                None => self.queue.grew.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.checked_duration_since(Instant::now())?;
                    let waited = self.queue.grew.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Iterator for Watch {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_change(None).transpose()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("org", &self.org.name).finish_non_exhaustive()
    }
}
