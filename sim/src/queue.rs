//! The order of things to come: events by time, and among those of one time in the order they were made.
//!
//! Most events happen a fixed delay after they are made (a message's latency, a piece's verification). Such events are
//! born in order, so each delay has a plain queue, a lane; only irregular ones pay for the heap.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use shoal_swarm::Time;

/// Delays that get a lane of their own; further ones share the heap.
const LANES_MAX: usize = 6;

#[derive(Debug)]
pub(crate) struct Queue<E> {
    made: u64,
    lanes: Vec<Lane<E>>,
    heap: BinaryHeap<Reverse<Entry<E>>>,
}

#[derive(Debug)]
struct Lane<E> {
    delay: Duration,
    entries: VecDeque<Entry<E>>,
}

#[derive(Debug)]
struct Entry<E> {
    due: (Time, u64),
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { made: 0, lanes: Vec::new(), heap: BinaryHeap::new() }
    }

    /// Adds an event a fixed delay from now; `now` never goes back from one call to the next.
    pub(crate) fn push_after(&mut self, now: Time, delay: Duration, event: E) {
        let entry = self.entry(now + delay, event);
        match self.lanes.iter().position(|lane| lane.delay == delay) {
            Some(lane) => self.lanes[lane].entries.push_back(entry),
            None if self.lanes.len() < LANES_MAX => {
                self.lanes.push(Lane { delay, entries: VecDeque::from([entry]) });
            }
            None => self.heap.push(Reverse(entry)),
        }
    }

    /// Adds an event at any time.
    pub(crate) fn push_at(&mut self, at: Time, event: E) {
        let entry = self.entry(at, event);
        self.heap.push(Reverse(entry));
    }

    /// When the next event is due.
    pub(crate) fn next_due(&self) -> Option<Time> {
        self.first().map(|((at, _), _)| at)
    }

    /// Takes the next event if it is due at `at`.
    pub(crate) fn pop_at(&mut self, at: Time) -> Option<E> {
        let ((due, _), lane) = self.first()?;
        if due != at {
            return None;
        }
        match lane {
            Some(lane) => self.lanes[lane].entries.pop_front().map(|entry| entry.event),
            None => self.heap.pop().map(|Reverse(entry)| entry.event),
        }
    }

    fn entry(&mut self, at: Time, event: E) -> Entry<E> {
        self.made += 1;
        Entry { due: (at, self.made), event }
    }

    /// When the first event is due, and the lane it is in; `None` for the heap.
    fn first(&self) -> Option<((Time, u64), Option<usize>)> {
        let mut best = self.heap.peek().map(|Reverse(entry)| (entry.due, None));
        for (index, lane) in self.lanes.iter().enumerate() {
            if let Some(entry) = lane.entries.front()
                && best.is_none_or(|(due, _)| entry.due < due)
            {
                best = Some((entry.due, Some(index)));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut Queue<&'static str>) -> String {
        let mut out = String::new();
        while let Some(at) = queue.next_due() {
            out.push_str(queue.pop_at(at).unwrap());
        }
        out
    }

    #[test]
    fn events_come_by_time_and_then_in_the_order_they_were_made() {
        let mut queue = Queue::new();
        let ms = Duration::from_millis;
        queue.push_at(Time::ZERO + ms(5), "c");
        queue.push_after(Time::ZERO, ms(5), "d");
        queue.push_after(Time::ZERO, ms(1), "a");
        queue.push_after(Time::ZERO + ms(1), ms(1), "b");
        queue.push_at(Time::ZERO + ms(9), "e");
        assert_eq!(drain(&mut queue), "abcde");
    }

    #[test]
    fn more_delays_than_lanes_keep_the_order() {
        let mut queue = Queue::new();
        for (delay, event) in [(9, "i"), (2, "b"), (8, "h"), (1, "a"), (5, "e"), (4, "d"), (7, "g"), (3, "c"), (6, "f")]
        {
            queue.push_after(Time::ZERO, Duration::from_secs(delay), event);
        }
        assert_eq!(drain(&mut queue), "abcdefghi");
    }
}
